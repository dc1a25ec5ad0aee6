// The scale list of a layer: the ranges that the integers of INT8 stand for (docs/int8.md), or the
// float8 numbers (docs/fp8.md).
#pragma once

#include <vector>

#include "tf_ops/core/weights.h"

namespace ft {

// Floats of a layer's list: 80 for activations, 5 H + I for the kernels' columns, 8 + 3 that are
// not read here.
int64_t ScaleListSize(const EncoderConfig& config);

// The ranges, largest magnitudes, that the kernels compute with; each stands for 127, or, of
// activations in float8, for 448.
struct LayerRanges {
  float input;           // of the layer
  float context;         // attention's result
  float projection;      // the attention output product, before its bias: mode 2 alone
  float attention_norm;  // the first layer norm's result
  float inner;           // after the activation
  float output_product;  // the output product, before its bias: mode 2 alone
  float output;          // of the layer: mode 2 alone
  // Of each column of the kernels; pointers into the list.
  const float* query;             // [H]
  const float* key;               // [H]
  const float* value;             // [H]
  const float* attention_output;  // [H]
  const float* intermediate;      // [I]
  const float* output_kernel;     // [H]
};

// Reads the ranges of all layers from their checked lists, in host memory; none unless
// is_quantized. InvalidArgument: ranges that the mode reads and that are not finite and positive;
// in mode 2 an output's range that is not that of the next layer's input, the same tensor.
Status ReadAllRanges(const EncoderConfig& config, const std::vector<LayerWeights>& layers,
                     std::vector<LayerRanges>* ranges);

// The numbers of a quantized layer. A `scale` makes integers, or float8: round(x * scale); a `unit`
// is what an integer stands for.
struct LayerScales {
  float input_scale, input_unit;
  float context_scale;
  float projection_unit;  // of the product as mode 2 rounds it
  float norm_scale, norm_unit;
  float inner_scale;
  float product_unit;  // of the output product as mode 2 rounds it
  float output_scale, output_unit;
};

// Of the four products: what one of a column's sums stands for, or how many of mode 2's roundings.
struct ProductScales {
  float* qkv;           // [3H]
  float* projection;    // [H]
  float* intermediate;  // [I]
  float* output;        // [H]
};

// Computes a layer's numbers as docs/int8.md has them; those of its products go to `products`.
LayerScales ComputeScales(const EncoderConfig& config, const LayerRanges& ranges,
                          const ProductScales& products);

}  // namespace ft
