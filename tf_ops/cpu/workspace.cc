#include "tf_ops/cpu/workspace.h"

#include <algorithm>

#include "tf_ops/core/arena.h"

namespace ft::cpu {

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
  w.num_tiles = (tokens + gemm.row_multiple - 1) / gemm.row_multiple;
  w.num_blocks = std::max<int64_t>(1, std::min(w.num_tiles, rounds * num_threads));
  const int64_t block_rows = (w.num_tiles + w.num_blocks - 1) / w.num_blocks * gemm.row_multiple;
  w.x = arena.Take<char>(tokens * hidden * bytes);
  w.qkv = arena.Take<char>(tokens * 3 * hidden * bytes);
  w.keys = arena.Take<int32_t>(batch.batch_size * 4);
  const auto scratch = [&](int64_t rows, int64_t inner_columns) {
    WorkerScratch s = {};
    s.sums = arena.Take<float>(rows * hidden * 4);
    s.hidden = arena.Take<char>(rows * hidden * bytes);
    s.inner = arena.Take<char>(rows * InnerStride(inner_columns) * bytes);
    return s;
  };
  w.whole = {};
  if (!w.by_rows) w.whole = scratch(tokens, config.inner_size);
  for (int64_t i = 0; i < num_threads; ++i) {
    WorkerScratch s = {};
    if (w.by_rows) s = scratch(block_rows, std::min(gemm.inner_chunk, config.inner_size));
    s.attention =
        arena.Take<char>(primitives.attention.scratch_bytes(batch.max_seq_len, config.head_size));
    w.workers.push_back(s);
  }
  w.bytes = arena.used();
  return w;
}

}  // namespace ft::cpu
