// What an encoder is, apart from its weights and the batch.
#pragma once

#include <string>

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
  // 0: the matrices are of `dtype`. 1, 2, 3: they are int8, and scale lists come with them
  // (docs/int8.md; 3 is 2).
  int int8_mode = 0;
  // 1: the matrices are int8 and come with scale lists, as with int8_mode 1, but products are of
  // float8 (docs/fp8.md); int8_mode is 0. GPUs alone.
  int fp8_mode = 0;
  // Whether these layers end with the model's last one. In mode 2 the outputs of all others are
  // quantized.
  bool has_last_layer = true;

  int64_t hidden_size() const { return num_heads * head_size; }
  // Whether products are of 8 bits, and scale lists come with the weights.
  bool is_quantized() const { return int8_mode != 0 || fp8_mode != 0; }
  DataType matrix_dtype() const { return is_quantized() ? DataType::kInt8 : dtype; }
  // Of what is_quantized() products read.
  DataType product_dtype() const { return fp8_mode != 0 ? DataType::kFloat8 : DataType::kInt8; }
  // Whether residuals, and so the layers' outputs, are int8.
  bool quantizes_residuals() const { return int8_mode >= 2; }
};

// What the attributes of an op can say wrongly, before the weights tell the inner size, which is
// not read: InvalidArgument if heads are larger than any model's or epsilon is no number >= 0.
Status ValidateAttributes(const EncoderConfig& config);

// "gelu_tanh", "gelu_erf" or "relu"; InvalidArgument for others.
Status ParseActivation(const std::string& name, Activation* activation);

// An op's int8_mode; InvalidArgument unless it is 0, 1, 2 or 3.
Status ParseInt8Mode(int64_t value, int* int8_mode);

// An op's fp8_mode beside its int8_mode; InvalidArgument unless it is 0, or 1 and int8_mode is 0.
Status ParseFp8Mode(int64_t value, int int8_mode, int* fp8_mode);

// InvalidArgument unless an op has one output, the last layer's, or one for each layer.
Status ValidateNumOutputs(const EncoderConfig& config, int64_t num_outputs);

// InvalidArgument if a size is not positive, the dtype is not a floating-point type or there is no
// such int8_mode or fp8_mode.
Status ValidateConfig(const EncoderConfig& config);

}  // namespace ft
