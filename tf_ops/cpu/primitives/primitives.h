// The inner loops of the CPU backend. isa.h implements them once; it is compiled for each
// instruction set, and GetPrimitives() picks the best that this processor has.
//
// "Panels" are the layout of a matrix B[K,N] that is a product's right side: N is cut into panels
// of panel_width columns (the last one padded with zeros), a panel is [K][panel_width], or for
// bfloat16 [K/2][panel_width][2] with K rounded up to even, which is what the dot product of pairs
// wants.
#pragma once

#include <cstdint>

#include "tf_ops/core/types.h"

namespace ft::cpu {

// Rounds to nearest even; the same on every processor.
using Bfloat16 = uint16_t;
using Half = uint16_t;

// A row-major matrix with row stride ld, in elements.
struct PanelSource {
  const void* data;
  int64_t ld;
};

struct GemmArgs {
  const void* a;  // [rows, k], row stride lda elements
  int64_t lda;
  const void* panels;   // first panel to use
  int64_t panel_bytes;  // from one panel to the next
  int64_t rows, k, cols;
  float* c;  // float32 result [rows, cols], row stride ldc; or scratch when out is set
  int64_t ldc;
  bool accumulate;  // c += instead of c =
  // If set, out = activation(c + bias), in the output type; c is not written.
  void* out = nullptr;
  int64_t ld_out = 0;
  const float* bias = nullptr;
  bool apply_activation = false;
  Activation activation = Activation::kGeluTanh;
};

// Products of one combination of types; sums are float32.
struct GemmPrimitives {
  DataType activation, weight, output;
  int64_t panel_width;
  int64_t row_multiple;  // rows of a full tile: row blocks that are a multiple lose nothing
  // The longest sum that one pass over a panel takes, and the columns of the inner layer that are
  // alive at once: panel and left side then stay in the L2 cache together.
  int64_t inner_chunk;
  void (*gemm)(const GemmArgs&);
  // One panel from rows [0,k) and columns [col, col + cols) of the `num_sources` matrices of
  // `source_cols` columns each that lie side by side; elements of `dtype`.
  void (*make_panel)(const PanelSource* sources, int64_t source_cols, DataType dtype, int64_t k,
                     int64_t col, int64_t cols, void* panel);

  // Bytes of one panel.
  int64_t PanelBytes(int64_t k) const {
    return AlignUp(k, weight == DataType::kBFloat16 ? 2 : 1) * panel_width * SizeOf(weight);
  }
};

struct AttentionArgs {
  const void* q;  // first query row of this head; k and v: first key row
  const void* k;
  const void* v;
  int64_t ld;  // row stride of q, k and v, in elements
  int64_t num_queries, num_keys, head_size;
  float scale;
  const void* mask;  // [num_queries, mask_ld] of mask_dtype, or null
  int64_t mask_ld;
  DataType mask_dtype;
  void* out;  // [num_queries, head_size], row stride ld_out
  int64_t ld_out;
  void* scratch;  // scratch_bytes
};

// Attention of one head, on elements of one type.
struct AttentionPrimitives {
  DataType dtype;
  void (*attention)(const AttentionArgs&);
  int64_t (*scratch_bytes)(int64_t num_keys, int64_t head_size);
};

struct LayerNormArgs {
  const float* x;  // [rows, n], row stride n
  const float* bias;
  const void* residual;  // row stride n
  const float* gamma;
  const float* beta;
  float epsilon;
  void* out;  // row stride n; may be residual
  int64_t rows, n;
};

// Layer norm with residual and output of one type.
struct NormPrimitives {
  DataType dtype;
  void (*add_bias_residual_layer_norm)(const LayerNormArgs&);
};

// How work is dealt to threads, as measured.
struct Schedule {
  // Rows, at most, that one task takes through projection, feed-forward network and the next QKV.
  int64_t block_rows;
  // With fewer rows for each thread the threads share the columns of the weights instead, so that
  // every weight is read from memory once.
  int64_t min_rows_per_thread;
};

// What an encoder of one type of activations computes with on one instruction set.
struct Primitives {
  const char* isa;
  DataType compute_dtype;  // of the activations between steps: float32 or bfloat16
  GemmPrimitives gemm;
  AttentionPrimitives attention;
  NormPrimitives norm;
  Schedule schedule;
};

// The best primitives of this processor for activations of `dtype`. `even_sizes`: all sizes that
// products sum over are even, which bfloat16's pairs need.
// $FT_CPU_ISA (generic, avx2, avx512, avx512bf16) caps the instruction set; for tests.
const Primitives& GetPrimitives(DataType dtype, bool even_sizes);

// y[i] = x[i] between any two of float32, float16 and bfloat16.
void Convert(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);

}  // namespace ft::cpu
