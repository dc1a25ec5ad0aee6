// The inner loops of the CPU backend. isa.h implements them once; it is compiled for each
// instruction set, and GetPrimitives() picks the best that this processor has.
//
// "Panels" are the layout of a matrix B[K,N] that is a product's right side: N is cut into panels
// of panel_width columns (the last one padded with zeros), a panel is [K/group][panel_width][group]
// with K rounded up to a multiple of `group`, the elements that one instruction multiplies and adds
// up: 1 of float32, 2 of bfloat16, 2 or 4 of int8. (Of int8 on tile registers rounded up to 64.)
//
// Products of integers have an int8 right side. Their left side, what docs/int8.md calls int8, is
// stored as uint8, q + 128, where an instruction adds up products of unsigned and signed numbers
// exactly. The 128 is taken off again by the value that a column's sum starts with, which stands
// before its panel.
#pragma once

#include <cstdint>

#include "tf_ops/core/encoder_config.h"

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
  // [rows, k], row stride lda elements. Up to a multiple of `group` elements are read of a row,
  // those past k without effect.
  const void* a;
  int64_t lda;
  const void* panels;   // first panel to use
  int64_t panel_bytes;  // from one panel to the next
  // What is likely to be wanted after the last panel, asked for while that is multiplied; or null.
  const void* next_panel = nullptr;
  int64_t rows, k, cols;
  // `a` holds the elements of the sum from this one on, a multiple of `group`; if it is not 0, the
  // earlier ones' sums are in c.
  int64_t first_k = 0;
  // Result [rows, cols], row stride ldc, unless `out` is set: float32, or while `scale` is null the
  // int32 sums of integers.
  void* c = nullptr;
  int64_t ldc = 0;
  // Integers: what one of a column's sum stands for, [cols]. Null: the sum goes on.
  const float* scale = nullptr;
  // Integers: if not 0, sums times scale are rounded to int8 and stand for that multiple of it.
  float rounded_unit = 0.0f;
  // If set, out = activation(sums + bias), in the output type; c is not written.
  void* out = nullptr;
  int64_t ld_out = 0;
  const float* bias = nullptr;
  bool apply_activation = false;
  Activation activation = Activation::kGeluTanh;
  // If not 0, `out` gets integers: the results times this, rounded, in the activations' type.
  float out_scale = 0.0f;
  void* scratch = nullptr;  // scratch_bytes
};

// Products of one combination of types; sums are float32, or int32 of integers.
struct GemmPrimitives {
  DataType activation, weight, output;
  int64_t group, panel_width;
  int64_t header_bytes;  // of the values before a panel that its sums start with
  int64_t row_multiple;  // rows of a full tile: row blocks that are a multiple lose nothing
  int64_t row_step;      // rows that are a multiple of this lose little, dealt to tiles equally
  // The longest sum that one pass over a panel takes, and the columns of the inner layer that are
  // alive at once: panel and left side then stay in the L2 cache together.
  int64_t inner_chunk;
  // The lengths of sums have to be multiples of this.
  int64_t k_multiple;
  // Of the memory that a call wants for itself.
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);
  void (*gemm)(const GemmArgs&);
  // One panel from rows [0,k) and columns [col, col + cols) of the `num_sources` matrices of
  // `source_cols` columns each that lie side by side; elements of `dtype`.
  void (*make_panel)(const PanelSource* sources, int64_t source_cols, DataType dtype, int64_t k,
                     int64_t col, int64_t cols, void* panel);

  // Bytes of one panel.
  int64_t PanelBytes(int64_t k) const {
    return header_bytes + AlignUp(k, group) * panel_width * SizeOf(weight);
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
  // If not 0, `out` gets integers: the context times this, rounded.
  float out_scale = 0.0f;
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
  const void* residual;  // row stride ld_residual
  int64_t ld_residual;
  // If not 0, the residual holds integers that stand for this multiple of themselves.
  float residual_unit = 0.0f;
  const float* gamma;
  const float* beta;
  float epsilon;
  int64_t rows, n;
  void* out = nullptr;  // row stride n, or null; may be residual
  // If set, the integers of the results times int_scale, row stride ld_int. May be residual.
  void* out_int = nullptr;
  int64_t ld_int = 0;
  float int_scale = 0.0f;
  // If not 0, `out` is not the result but this multiple of its integers.
  float out_unit = 0.0f;
};

// Layer norm with residual and output of one type, or integers.
struct NormPrimitives {
  DataType dtype;
  void (*add_bias_residual_layer_norm)(const LayerNormArgs&);
};

// q[rows, n] = the integers of x[rows, n] times scale; x has row stride n, q has ld_int.
struct QuantizeArgs {
  const void* x;
  int64_t rows, n;
  float scale;
  void* q;
  int64_t ld_int;
};

// How work is dealt to threads, as measured.
struct Schedule {
  // Rows, at most, that one task takes through projection, feed-forward network and the next QKV.
  int64_t block_rows;
  // With fewer rows for each thread each product is dealt for itself, in tasks of some rows by some
  // columns, so that each thread reads less of the weights.
  int64_t min_rows_per_thread;
  // Rows, at most, of one of those tasks: what it reads of them stays in the L2 cache.
  int64_t grid_rows;
};

// What an encoder of one type of activations computes with on one instruction set.
struct Primitives {
  const char* isa;
  DataType compute_dtype;  // of the activations between steps: float32 or bfloat16
  GemmPrimitives gemm;
  AttentionPrimitives attention;
  NormPrimitives norm;
  Schedule schedule;
  void (*quantize)(const QuantizeArgs&);
  void (*convert)(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);
  bool has_integers() const { return gemm.weight == DataType::kInt8; }
};

// The best primitives of this processor for a model. bfloat16 is computed in pairs, or on tile
// registers, so only where the sizes that its products sum over are multiples.
// $FT_CPU_ISA (generic, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx) caps the instruction
// set; for tests.
const Primitives& GetPrimitives(const EncoderConfig& config);

// y[i] = x[i] between any two of float32, float16 and bfloat16.
void Convert(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);

}  // namespace ft::cpu
