// Products of int8 or float8 that end with the layer norm of their rows, in one kernel
// (docs/int8.md, docs/fp8.md). All pointers are device pointers, 16-byte aligned unless said
// otherwise; all work is put on the context's stream, and nothing waits for it.
#pragma once

#include <optional>

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Kernels of compute capability 9.0 alone, by how the blocks that have all columns of their rows
// exchange what these sum to.
enum class NormGemmKind {
  kCluster,  // by shared memory: a cluster of blocks
  kGroup,    // by device memory: two clusters, of which more fit on a device
};
inline constexpr int kNumNormGemmKinds = 2;

const char* Name(NormGemmKind kind);

struct NormGemmArgs {
  DataType dtype = DataType::kFloat16;     // or bfloat16: of bias, residual, gamma, beta, output
  DataType input_dtype = DataType::kInt8;  // or float8: of x and w
  int64_t rows = 0, n = 0, k = 0;
  const void* x = nullptr;         // [rows,k]
  const void* w = nullptr;         // [n,k]
  const float* scale = nullptr;    // [n]
  const void* bias = nullptr;      // [n]
  const void* residual = nullptr;  // [rows,n]
  const void* gamma = nullptr;     // [n]
  const void* beta = nullptr;      // [n]
  float epsilon = 0.f;
  void* output = nullptr;  // [rows,n]
  // With 8 bits alone: [rows,n] of input_dtype or null, the output times `quantized_scale`,
  // rounded.
  void* quantized = nullptr;
  const float* quantized_scale = nullptr;  // one number, of any alignment
  // kGroup alone: two buffers of NormSumsBytes that successive launches of a stream take in turn.
  // `sums` has to hold bytes 0xff; the launch leaves that in next_sums, and anything in `sums`.
  void* sums = nullptr;
  void* next_sums = nullptr;
};

int64_t NormSumsBytes(int64_t rows);

// Whether the kernels can compute it on this device; reads sizes and types alone.
bool NormGemmSupported(const NormGemmArgs& args, const LaunchContext& context);

// The kind that should be faster than a product and a layer norm one after the other, if there is
// one.
std::optional<NormGemmKind> SelectNormGemm(const NormGemmArgs& args, const LaunchContext& context);

// output = LayerNorm(x w^T * scale + bias + residual) over n, in float32 from the products' sums
// on; the variance is that of the differences from the mean. `quantized` is rounded as by
// LaunchInt8LayerNorm (norm/int8_layer_norm.h), from float32 too. Rows past the last are neither
// read nor written.
Status LaunchNormGemm(const NormGemmArgs& args, NormGemmKind kind, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
