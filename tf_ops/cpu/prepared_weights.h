// The weights of a layer as the CPU's primitives want them: matrices in panels, vectors in float32.
#pragma once

#include <vector>

#include "tf_ops/core/arena.h"
#include "tf_ops/core/encoder.h"
#include "tf_ops/core/scales.h"
#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

// A right side in panels.
struct PanelMatrix {
  char* panels = nullptr;
  int64_t k = 0, n = 0, panel_bytes = 0;
};

struct PreparedLayer {
  PanelMatrix qkv, projection, intermediate, output;
  // INT8: what one of a column's sums stands for, or how many roundings of mode 2.
  float *qkv_scale, *projection_scale, *intermediate_scale, *output_scale;
  LayerScales* scales;
  float *qkv_bias, *projection_bias, *intermediate_bias, *output_bias;
  float *attention_gamma, *attention_beta, *output_gamma, *output_beta;
};

// The next layer's place in the arena.
PreparedLayer LayOutLayer(const EncoderConfig& config, const GemmPrimitives& gemm, Arena* arena);

// Prepares all layers' checked weights in `prepared`. Errors: ranges that no integer can have.
Status PrepareWeights(const EncoderConfig& config, const GemmPrimitives& gemm,
                      const std::vector<LayerWeights>& layers, void* prepared, ThreadPool* pool);

}  // namespace ft::cpu
