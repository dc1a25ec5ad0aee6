// Layer norm between integers (docs/int8.md), or to float8 (docs/fp8.md). All pointers are device
// pointers, 16-byte aligned unless said otherwise; all work is put on the context's stream, and
// nothing waits for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

struct Int8LayerNormArgs {
  DataType dtype = DataType::kFloat32;  // of bias, gamma, beta and output
  int64_t rows = 0, hidden_size = 0;
  // Whether input and residual are int8, each with what an integer stands for, or of dtype.
  bool reads_integers = false;
  const void* input = nullptr;        // [T,H], or in its place `partials`
  const float* input_unit = nullptr;  // one number, of any alignment, as all units and scales
  const void* residual = nullptr;     // [T,H]
  const float* residual_unit = nullptr;
  // Of a product's sums: int32 or, where the output is float8, float32 [num_partials,T,H]. Added up
  // and times product_scale [H] they are the input, rounded first where that is int8.
  const void* partials = nullptr;
  int num_partials = 0;
  const float* product_scale = nullptr;
  const void* bias = nullptr;   // [H]
  const void* gamma = nullptr;  // [H]
  const void* beta = nullptr;   // [H]
  float epsilon = 0.f;
  void* output = nullptr;                      // [T,H] or null
  void* quantized = nullptr;                   // [T,H] or null: the output times `scale`, rounded
  DataType quantized_dtype = DataType::kInt8;  // or kFloat8, where !reads_integers
  const float* scale = nullptr;                // with quantized or output_unit
  // Where it is given, `output` holds the integers times it.
  const float* output_unit = nullptr;
};

// LayerNorm(input + bias + residual) over H, in float32 until it is stored.
Status LaunchInt8LayerNorm(const Int8LayerNormArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
