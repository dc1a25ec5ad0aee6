// Bias, residual and layer norm. All pointers are device pointers, 16-byte aligned unless said
// otherwise; all work is put on the context's stream, and nothing waits for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// More partial sums than this are not worth what the layer norm takes to add them up.
inline constexpr int kMaxNormPartials = 8;

struct LayerNormArgs {
  DataType dtype = DataType::kFloat32;
  int64_t rows = 0, hidden_size = 0;
  // Either input [T,H] of dtype, or partials: float32 [num_partials,T,H] that are summed.
  const void* input = nullptr;
  const float* partials = nullptr;
  int num_partials = 0;
  const void* bias = nullptr;      // [H] or null
  const void* residual = nullptr;  // [T,H] or null
  const void* gamma = nullptr;     // [H]
  const void* beta = nullptr;      // [H]
  float epsilon = 0.f;
  void* output = nullptr;  // [T,H]
  // Split rows of the output and their scales (gemm/split/split_gemm.h), or null. float32 alone,
  // LayerNormSplits.
  void* split = nullptr;
  float* split_scale = nullptr;  // [T]
};

// Whether rows of this size can be split in the same pass.
bool LayerNormSplits(int64_t hidden_size);

// output = LayerNorm(input + bias + residual) over H in one pass; float32 statistics about the
// mean.
Status LaunchLayerNorm(const LayerNormArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
