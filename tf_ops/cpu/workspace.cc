#include "tf_ops/cpu/workspace.h"

#include <algorithm>

#include "tf_ops/core/arena.h"

namespace ft::cpu {
namespace {

// Some columns more than are used, so that rows do not fall on the same cache sets.
int64_t PaddedStride(int64_t columns, int64_t bytes) {
  return bytes == 4 ? columns + 32 : AlignUp(columns, 64) + 64;
}

}  // namespace

Workspace LayOutWorkspace(const EncoderConfig& config, const Primitives& primitives,
                          const EncoderBatch& batch, int64_t num_threads, void* base) {
  Workspace w;
  Arena arena(base);
  const GemmPrimitives& gemm = primitives.gemm;
  const int64_t tokens = batch.num_tokens, hidden = config.hidden_size();
  const int64_t bytes = SizeOf(primitives.compute_dtype);
  const int64_t rows_per_round = num_threads * primitives.schedule.block_rows;
  w.by_rows = tokens >= num_threads * primitives.schedule.min_rows_per_thread;
  const int64_t rounds = (tokens + rows_per_round - 1) / rows_per_round;
  w.unit_rows = w.by_rows ? gemm.row_multiple : 1;
  w.num_units = (tokens + w.unit_rows - 1) / w.unit_rows;
  w.num_blocks = std::max<int64_t>(1, std::min(w.num_units, rounds * num_threads));
  const int64_t block_rows = (w.num_units + w.num_blocks - 1) / w.num_blocks * w.unit_rows;
  const auto take = [&arena](int64_t rows, int64_t stride, int64_t element_bytes) {
    return Rows{arena.Take<char>(rows * stride * element_bytes), stride, element_bytes};
  };
  const bool integers = primitives.has_integers();
  // Of one call of a product.
  const int64_t gemm_rows =
      std::min(AlignUp(tokens, gemm.row_multiple),
               w.by_rows ? block_rows : std::max(gemm.row_multiple, primitives.schedule.grid_rows));
  const int64_t gemm_bytes = gemm.scratch_bytes(
      gemm_rows, std::max(hidden, std::min(gemm.inner_chunk, config.inner_size)));
  // What products read: rows of whole groups, which INT8's sizes need not be.
  const int64_t input_bytes = SizeOf(gemm.activation);
  const int64_t int_stride = PaddedStride(hidden, input_bytes);
  w.x = take(tokens, hidden, bytes);
  w.qkv = take(tokens, 3 * hidden, bytes);
  w.context = w.qkv;
  if (integers) {
    w.x_int = take(tokens, int_stride, input_bytes);
    w.context = take(tokens, int_stride, input_bytes);
  }
  w.keys = arena.Take<int32_t>(batch.batch_size * 4);
  const auto scratch = [&](int64_t rows, int64_t inner_columns) {
    WorkerScratch s = {};
    s.sums = arena.Take<float>(rows * hidden * 4);
    s.hidden = take(rows, hidden, bytes);
    if (integers) s.hidden_int = take(rows, int_stride, input_bytes);
    s.inner = take(rows, PaddedStride(inner_columns, input_bytes), input_bytes);
    return s;
  };
  w.whole = {};
  if (!w.by_rows) w.whole = scratch(tokens, config.inner_size);
  for (int64_t i = 0; i < num_threads; ++i) {
    WorkerScratch s = {};
    if (w.by_rows) s = scratch(block_rows, std::min(gemm.inner_chunk, config.inner_size));
    s.attention =
        arena.Take(primitives.attention.scratch_bytes(batch.max_seq_len, config.head_size));
    if (gemm_bytes > 0) s.gemm = arena.Take(gemm_bytes);
    w.workers.push_back(s);
  }
  w.bytes = arena.used();
  return w;
}

}  // namespace ft::cpu
