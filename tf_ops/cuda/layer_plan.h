// A layer as a list of steps. Running, tuning and the workspace walk the same list, so that a new
// precision is new types of edges and new kernels, and nothing is said twice.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <variant>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/gemm/int8/int8_gemm.h"
#include "tf_ops/cuda/gemm/norm/norm_gemm.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"
#include "tf_ops/cuda/prepared_weights.h"

namespace ft {
namespace cuda {

// The activations between the steps of a layer. They are of the model's type but for those that say
// otherwise; with INT8 so are kContext and kInner, and in mode 2 kSum: int8. What is int8 with INT8
// is float8 with FP8.
enum class Edge {
  kInput,           // [T,H] the layer's input
  kQkv,             // [T,3H]
  kContext,         // [T,H] attention's output
  kSum,             // [T,H] a product with bias and residual, before its layer norm
  kPartials,        // float32, of int8 int32 [splits,T,H]: parts of a product that add up to it
  kMiddle,          // [T,H] after the attention's layer norm
  kInner,           // [T,I]
  kOutput,          // [T,H] the layer's output
  kInputIntegers,   // int8 [T,H] kInput; the layer's last step puts the next one's there
  kMiddleIntegers,  // int8 [T,H] kMiddle
  kSplit,           // split rows [T,H]: the next product's input
  kSplitScale,      // float32 [T]: of the split rows that the next product reads
};
inline constexpr int kNumEdges = 12;

// `output` = epilogue(`input` x weights), by cuBLASLt or, of float16 and bfloat16, a kernel that is
// faster (gemm/half/half_gemm.h).
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

// Split rows of `output` and kSplitScale = activation(`input`); the two may be the same edge.
struct SplitStep {
  Edge input, output;
  int64_t columns, input_pitch;
  bool has_activation;
};

// `output` = split rows x split weights + bias; kPartials: without bias.
struct SplitGemmStep {
  const char* name;    // for people
  SplitGemmArgs args;  // sizes; no pointers
  Edge input, output;
  int64_t kernel, scale, bias;  // byte offsets in the layer's prepared weights
};

struct ActivationStep {
  Edge edge;  // in place
  int64_t columns;
};

struct AttentionStep {};

// kPartials = the context of kQkv x weights, of one short sequence (attention/projection.h).
struct AttentionProjectionStep {
  int64_t kernel;  // byte offset in the layer's prepared weights
};

// `output` = numbers or, rounded, integers or float8 from the product of such; with
// args.num_partials kPartials.
struct Int8GemmStep {
  const char* name;   // for people
  Int8GemmArgs args;  // sizes, output type and activation; no pointers
  bool few_rows;      // by kFewRows, else by the kernel that was tuned or a rule's
  Edge input, output;
  // Byte offsets in the layer's prepared weights; -1: none.
  int64_t kernel, scale, bias, out_scale;
};

// Byte offsets of numbers of LayerScales in the layer's prepared weights; -1: none.
struct Int8NormScales {
  int64_t input_unit, residual_unit, scale;
};

// LayerNorm(`input` + bias + `residual`), as integers or float8 and, but in mode 2, numbers too.
struct Int8NormStep {
  Edge input;
  int num_partials;       // 0: `input` is not in parts
  int64_t product_scale;  // byte offset in the layer's prepared weights, with partials
  Edge residual;
  bool is_last;  // of the layer: it writes kOutput and kInputIntegers, else kMiddle...
  int64_t bias, gamma, beta;
  Int8NormScales scales;
};

// `output` = LayerNorm(`input`), or of the partial sums with bias and residual.
struct NormStep {
  Edge input;
  int num_partials;  // 0: `input` has bias and residual already
  Edge residual, output;
  int64_t bias, gamma, beta;
  bool splits = false;  // the output, too, into kSplit, where a product follows
};

// An Int8GemmStep and the Int8NormStep after it in one: `output` = LayerNorm(`input` x weights +
// bias + `residual`), rounded too where a product follows.
struct NormGemmStep {
  NormGemmArgs args;  // sizes and types; no pointers
  NormGemmKind kind;
  Edge input, residual, output;
  // Byte offsets in the layer's prepared weights.
  int64_t kernel, scale, bias, gamma, beta;
  bool is_last;             // of the layer
  int64_t quantized_scale;  // where it is not
};

using Step =
    std::variant<GemmStep, FewRowsStep, ActivationStep, AttentionStep, AttentionProjectionStep,
                 NormStep, Int8GemmStep, Int8NormStep, SplitStep, SplitGemmStep, NormGemmStep>;

struct LayerPlan {
  std::vector<Step> steps;
  // Byte offsets in the workspace, -1 where an edge is the caller's or not in use.
  int64_t edges[kNumEdges];
  int64_t mask_keys, gemm_workspace, total_bytes;
  // Both buffers of NormGemmArgs::sums, side by side, which are to hold bytes 0xff before a call.
  // norm_sums_bytes is of one; 0: no step needs them.
  int64_t norm_sums = -1, norm_sums_bytes = 0;
};

struct PlanOptions {
  // Up to this many rows products use the kernel for few rows. -1: what was measured.
  int64_t few_rows = -1;
  // Products of 16 bits are cuBLASLt's.
  bool cublaslt_only = false;
  // INT8 and FP8: no product ends with its layer norm, also where that is faster.
  bool separate_norms = false;
  // Else all do that this kernel can take, instead of those where one was measured to be faster.
  std::optional<NormGemmKind> norm_kind;
};

// Whether the products of a layer of these sizes can be split ones, on a device of this process
// that has the kernels for them.
bool CanSplit(const EncoderConfig& config);

// Whether those of a call are: TF32, where it is allowed, is faster.
bool UsesSplit(const WeightLayout& weights, const LaunchContext& context);

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
  // Rows, sequences if there is a mask, whether attention and its product are one kernel, TF32,
  // device.
  using Key = std::tuple<int64_t, int64_t, bool, bool, int>;

  const EncoderConfig& config_;
  const WeightLayout& weights_;
  const PlanOptions options_;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const LayerPlan>> plans_;  // bounded
};

// The products that cuBLASLt computes, or those of integers, or split ones, where a layer has such.
template <typename Product>
std::vector<Product> Products(const LayerPlan& plan) {
  std::vector<Product> products;
  for (const Step& step : plan.steps) {
    if (const auto* product = std::get_if<Product>(&step)) products.push_back(*product);
  }
  return products;
}

}  // namespace cuda
}  // namespace ft
