// The sixteen weights of one post-layer-norm BERT layer, and the check of their shapes.
#pragma once

#include <vector>

#include "tf_ops/core/encoder_config.h"
#include "tf_ops/core/types.h"

namespace ft {

// Kernels are [in, out] row-major, as tf.layers.dense keeps them.
struct LayerWeights {
  TensorView query_kernel;               // [H,H]
  TensorView query_bias;                 // [H]
  TensorView key_kernel;                 // [H,H]
  TensorView key_bias;                   // [H]
  TensorView value_kernel;               // [H,H]
  TensorView value_bias;                 // [H]
  TensorView attention_output_kernel;    // [H,H]
  TensorView attention_output_bias;      // [H]
  TensorView attention_layernorm_beta;   // [H]
  TensorView attention_layernorm_gamma;  // [H]
  TensorView intermediate_kernel;        // [H,I]
  TensorView intermediate_bias;          // [I]
  TensorView output_kernel;              // [I,H]
  TensorView output_bias;                // [H]
  TensorView output_layernorm_beta;      // [H]
  TensorView output_layernorm_gamma;     // [H]
  // With is_quantized() alone, float32 [ScaleListSize]: not a weight, but what the kernels'
  // integers and the activations' stand for (scales.h).
  TensorView amax_list;
};

inline constexpr int kWeightsPerLayer = 16;

// What there is to know of one of the sixteen: the one list that shapes, checks, tests and tools of
// C++ derive from.
struct WeightField {
  const char* op_input;             // its name as an input of BertTransformer and BertEncoder
  TensorView LayerWeights::* view;  // its place in LayerWeights
  const char* shape;                // a letter for each dimension: H hidden size, I inner size
  bool is_quantized;  // int8 or float8 in the low-precision modes, with a scale for each
                      // column: the last dimension, the product's outputs
};

// The sixteen fields, in the order in which BertTransformer and BertEncoder take them.
const WeightField* WeightFields();

// The shape of a weight, by its place in WeightFields().
Shape WeightShape(const EncoderConfig& config, int field);

// The tensors that the prepared form of a layer is made from, by number: the sixteen and, where it
// is_quantized, the scale list.
inline int NumSources(const EncoderConfig& config) {
  return kWeightsPerLayer + (config.is_quantized() ? 1 : 0);
}
inline const TensorView& Source(const LayerWeights& layer, int i) {
  return i < kWeightsPerLayer ? layer.*WeightFields()[i].view : layer.amax_list;
}

// Checks dtype and shape of all weights against `config`. InvalidArgument lists every fault, with
// the op input's name, what it is and what is expected, so that one run shows them all.
Status ValidateWeights(const EncoderConfig& config, const std::vector<LayerWeights>& layers);

}  // namespace ft
