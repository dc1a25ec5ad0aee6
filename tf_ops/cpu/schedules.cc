#include "tf_ops/cpu/schedules.h"

#include <algorithm>

namespace ft::cpu {

AttentionTasks::AttentionTasks(const LayerSteps& steps, int64_t num_threads) {
  const int64_t heads = steps.batch().batch_size * steps.config().num_heads;
  splits = heads >= 2 * num_threads ? 1 : (2 * num_threads + heads - 1) / heads;
  count = heads * splits;
}

void ScheduleByRows(const LayerSteps& steps, int64_t num_threads, Phases* phases) {
  const AttentionTasks attention(steps, num_threads);
  const int64_t num_layers = steps.config().num_layers, num_blocks = steps.workspace().num_blocks;
  phases->Add(num_blocks, [&steps](int64_t task, int) {
    const auto [row, rows] = steps.Block(task);
    steps.QkvRows(0, row, rows);
  });
  for (int64_t l = 0; l < num_layers; ++l) {
    phases->Add(attention.count, [&steps, attention](int64_t task, int worker) {
      steps.Attention(task, attention.splits, steps.workspace().workers[worker].attention);
    });
    phases->Add(num_blocks, [&steps, l, num_layers](int64_t task, int worker) {
      const auto [row, rows] = steps.Block(task);
      const WorkerScratch& s = steps.workspace().workers[worker];
      const PreparedLayer& w = steps.weights(l);
      const int64_t hidden = steps.hidden(), inner = steps.config().inner_size;
      const int64_t chunk = steps.primitives().gemm.inner_chunk;
      steps.Sums(w.projection, At(steps.workspace().qkv, row * 3 * hidden, steps.bytes()),
                 3 * hidden, rows, 0, hidden, s.sums);
      steps.AttentionNorm(l, s.sums, row, rows, s.hidden);
      const int64_t stride = InnerStride(std::min(chunk, inner));
      for (int64_t k = 0; k < inner; k += chunk) {
        // The chunk's columns lie at the beginning of the scratch.
        steps.Dense(w.intermediate, s.hidden, hidden, rows, k, std::min(inner, k + chunk),
                    w.intermediate_bias, true, s.inner - k * steps.bytes(), stride);
        steps.SumsChunk(w.output, s.inner, stride, rows, 0, hidden, k, s.sums);
      }
      steps.OutputNorm(l, s.sums, s.hidden, row, rows);
      if (l + 1 < num_layers) steps.QkvRows(l + 1, row, rows);
    });
  }
}

void ScheduleByColumns(const LayerSteps& steps, int64_t num_threads, Phases* phases) {
  const AttentionTasks attention(steps, num_threads);
  const EncoderConfig& config = steps.config();
  const int64_t width = steps.primitives().gemm.panel_width;
  // Panels are dealt in ranges of whole panels, a few for each thread.
  const auto columns = [&](int64_t n, std::function<void(int64_t, int64_t)> work) {
    const int64_t panels = (n + width - 1) / width;
    const int64_t per_task = std::max<int64_t>(1, panels / (num_threads * 4)) * width;
    phases->Add((n + per_task - 1) / per_task, [n, per_task, work](int64_t task, int) {
      work(task * per_task, std::min(n, (task + 1) * per_task));
    });
  };
  const int64_t hidden = steps.hidden(), tokens = steps.batch().num_tokens;
  const int64_t num_blocks = steps.workspace().num_blocks;
  const int64_t stride = InnerStride(config.inner_size);
  for (int64_t l = 0; l < config.num_layers; ++l) {
    columns(3 * hidden, [&steps, l, hidden, tokens](int64_t begin, int64_t end) {
      const PreparedLayer& w = steps.weights(l);
      steps.Dense(w.qkv, steps.InputOf(l), hidden, tokens, begin, end, w.qkv_bias, false,
                  steps.workspace().qkv, 3 * hidden);
    });
    phases->Add(attention.count, [&steps, attention](int64_t task, int worker) {
      steps.Attention(task, attention.splits, steps.workspace().workers[worker].attention);
    });
    columns(hidden, [&steps, l, hidden, tokens](int64_t begin, int64_t end) {
      steps.Sums(steps.weights(l).projection, steps.workspace().qkv, 3 * hidden, tokens, begin, end,
                 steps.workspace().whole.sums);
    });
    phases->Add(num_blocks, [&steps, l, hidden](int64_t task, int) {
      const auto [row, rows] = steps.Block(task);
      const WorkerScratch& s = steps.workspace().whole;
      steps.AttentionNorm(l, s.sums + row * hidden, row, rows,
                          At(s.hidden, row * hidden, steps.bytes()));
    });
    columns(config.inner_size, [&steps, l, hidden, tokens, stride](int64_t begin, int64_t end) {
      const PreparedLayer& w = steps.weights(l);
      const WorkerScratch& s = steps.workspace().whole;
      steps.Dense(w.intermediate, s.hidden, hidden, tokens, begin, end, w.intermediate_bias, true,
                  s.inner, stride);
    });
    columns(hidden, [&steps, l, tokens, stride](int64_t begin, int64_t end) {
      const WorkerScratch& s = steps.workspace().whole;
      steps.Sums(steps.weights(l).output, s.inner, stride, tokens, begin, end, s.sums);
    });
    phases->Add(num_blocks, [&steps, l, hidden](int64_t task, int) {
      const auto [row, rows] = steps.Block(task);
      const WorkerScratch& s = steps.workspace().whole;
      steps.OutputNorm(l, s.sums + row * hidden, At(s.hidden, row * hidden, steps.bytes()), row,
                       rows);
    });
  }
}

}  // namespace ft::cpu
