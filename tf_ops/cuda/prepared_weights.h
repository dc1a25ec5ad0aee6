// The weights of a layer as the CUDA kernels want them: matrices as [out,in], query, key and value
// as one; with INT8, matrices of int8 and what their sums stand for; float32 matrices split, too.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/core/scales.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// A matrix as split rows with their scales: see gemm/split/split_gemm.h.
struct SplitWeight {
  int64_t kernel, scale;
};

// Byte offsets of a layer's prepared weights.
struct WeightLayout {
  int64_t qkv_kernel, qkv_bias, attention_kernel, attention_bias, attention_beta, attention_gamma,
      inner_kernel, inner_bias, output_kernel, output_bias, output_beta, output_gamma, layer_bytes;
  // INT8 alone, read by kernels where it lies: a captured graph holds addresses alone. What one of
  // a column's sums stands for, or how many roundings of mode 2: float32.
  int64_t qkv_scale, attention_scale, inner_scale, output_scale;
  int64_t scales;
  // The biases that products add, as float32.
  int64_t qkv_float_bias, inner_float_bias;
  // Beside the matrices, which calls that allow TF32 read.
  bool has_split;
  SplitWeight qkv_split, attention_split, inner_split, output_split;

  WeightLayout(const EncoderConfig& config, bool has_split);
};

// Puts the preparation of all layers' checked weights on the stream. With INT8 it waits for the
// stream, to read the scale lists. Errors: ranges that no integer can have; a stream that is being
// captured.
Status PrepareWeights(const EncoderConfig& config, const WeightLayout& layout,
                      const std::vector<LayerWeights>& layers, void* prepared,
                      const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
