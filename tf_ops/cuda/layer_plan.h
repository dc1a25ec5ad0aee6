// A layer as a list of steps. Running, tuning and the workspace walk the same list, so that a new
// precision is new types of edges and new kernels, and nothing is said twice.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <variant>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/prepared_weights.h"

namespace ft {
namespace cuda {

// The activations between the steps of a layer.
enum class Edge {
  kInput,     // [T,H] the layer's input
  kQkv,       // [T,3H]
  kContext,   // [T,H] attention's output
  kSum,       // [T,H] a product with bias and residual, before its layer norm
  kPartials,  // float32 [splits,T,H]: parts of a product that add up to it
  kMiddle,    // [T,H] after the attention's layer norm
  kInner,     // [T,I]
  kOutput,    // [T,H] the layer's output
};
inline constexpr int kNumEdges = 8;

// `output` = epilogue(`input` x weights), by cuBLASLt.
struct GemmStep {
  const char* name;  // for people
  GemmShape shape;   // sizes, and the types of the edges
  Edge input, output;
  Edge residual;         // read if shape.residual
  int64_t kernel, bias;  // byte offsets in the layer's prepared weights
};

// The same for few rows; into kPartials without bias.
struct FewRowsStep {
  int64_t n, k;
  int num_splits;
  bool has_activation;
  Edge input, output;
  int64_t kernel, bias;
};

struct ActivationStep {
  Edge edge;  // in place
  int64_t columns;
};

struct AttentionStep {};

// `output` = LayerNorm(`input`), or of the partial sums with bias and residual.
struct NormStep {
  Edge input;
  int num_partials;  // 0: `input` has bias and residual already
  Edge residual, output;
  int64_t bias, gamma, beta;
};

using Step = std::variant<GemmStep, FewRowsStep, ActivationStep, AttentionStep, NormStep>;

struct LayerPlan {
  std::vector<Step> steps;
  // Byte offsets in the workspace, -1 where an edge is the caller's or not in use.
  int64_t edges[kNumEdges];
  int64_t mask_keys, gemm_workspace, total_bytes;
};

struct PlanOptions {
  // Up to this many rows 16-bit products use the kernel for few rows. -1: the measured default.
  int64_t few_rows = -1;
};

// The plan for `rows` rows of `batch`; only its sizes and which pointers it has are read.
LayerPlan MakeLayerPlan(const EncoderConfig& config, const WeightLayout& weights,
                        const EncoderBatch& batch, const PlanOptions& options,
                        const LaunchContext& context);

// Plans by the sizes that they depend on; made once each. Any number of threads.
class LayerPlans {
 public:
  LayerPlans(const EncoderConfig& config, const WeightLayout& weights, const PlanOptions& options)
      : config_(config), weights_(weights), options_(options) {}

  std::shared_ptr<const LayerPlan> Get(const EncoderBatch& batch, const LaunchContext& context);

 private:
  // Rows, sequences if there is a mask, TF32, device.
  using Key = std::tuple<int64_t, int64_t, bool, int>;

  const EncoderConfig& config_;
  const WeightLayout& weights_;
  const PlanOptions options_;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const LayerPlan>> plans_;  // bounded
};

// The products that cuBLASLt computes, where one layer of `rows` rows has such.
std::vector<GemmStep> GemmSteps(const LayerPlan& plan);

}  // namespace cuda
}  // namespace ft
