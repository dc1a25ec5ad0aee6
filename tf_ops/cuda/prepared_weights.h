// The weights of a layer as the CUDA kernels want them: matrices as [out,in], query, key and value
// as one.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Byte offsets of a layer's prepared weights.
struct WeightLayout {
  int64_t qkv_kernel, qkv_bias, attention_kernel, attention_bias, attention_beta, attention_gamma,
      inner_kernel, inner_bias, output_kernel, output_bias, output_beta, output_gamma, layer_bytes;

  explicit WeightLayout(const EncoderConfig& config);
};

// Puts the preparation of all layers' checked weights on the stream.
Status PrepareWeights(const EncoderConfig& config, const std::vector<LayerWeights>& layers,
                      void* prepared, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
