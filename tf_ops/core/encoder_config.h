// What an encoder is, apart from its weights and the batch.
#pragma once

#include "tf_ops/core/types.h"

namespace ft {

struct EncoderConfig {
  DataType dtype =
      DataType::kFloat32;  // of activations, weights and mask: float32, float16, bfloat16
  int64_t num_heads = 0;   // N
  int64_t head_size = 0;   // D
  int64_t inner_size = 0;  // I
  int64_t num_layers = 1;  // L
  Activation activation = Activation::kGeluTanh;
  float layernorm_epsilon = 1e-12f;  // google-research BERT's (contrib layer_norm)

  int64_t hidden_size() const { return num_heads * head_size; }
};

// InvalidArgument if a size is not positive or the dtype is not a floating-point type.
Status ValidateConfig(const EncoderConfig& config);

}  // namespace ft
