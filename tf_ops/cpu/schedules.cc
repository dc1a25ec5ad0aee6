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
  const int64_t hidden = steps.hidden();
  phases->Add(num_blocks, [&steps, hidden](int64_t task, int) {
    const auto [row, rows] = steps.Block(task);
    steps.Qkv(0, row, rows, 0, 3 * hidden);
  });
  for (int64_t l = 0; l < num_layers; ++l) {
    phases->Add(attention.count, [&steps, l, attention](int64_t task, int worker) {
      steps.Attention(l, task, attention.splits, steps.workspace().workers[worker].attention);
    });
    phases->Add(num_blocks, [&steps, l, hidden, num_layers](int64_t task, int worker) {
      const auto [row, rows] = steps.Block(task);
      const WorkerScratch& s = steps.workspace().workers[worker];
      const int64_t inner = steps.config().inner_size;
      const int64_t chunk = steps.primitives().gemm.inner_chunk;
      steps.Projection(l, row, rows, 0, hidden, s);
      steps.AttentionNorm(l, row, rows, s);
      for (int64_t k = 0; k < inner; k += chunk) {
        const int64_t end = std::min(inner, k + chunk);
        steps.Intermediate(l, rows, k, end, 0, s);
        steps.Output(l, rows, 0, hidden, k, end - k, s);
      }
      steps.OutputNorm(l, row, rows, s);
      if (l + 1 < num_layers) steps.Qkv(l + 1, row, rows, 0, 3 * hidden);
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
  const int64_t hidden = steps.hidden(), inner = config.inner_size;
  const int64_t tokens = steps.batch().num_tokens, num_blocks = steps.workspace().num_blocks;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    columns(3 * hidden, [&steps, l, tokens](int64_t begin, int64_t end) {
      steps.Qkv(l, 0, tokens, begin, end);
    });
    phases->Add(attention.count, [&steps, l, attention](int64_t task, int worker) {
      steps.Attention(l, task, attention.splits, steps.workspace().workers[worker].attention);
    });
    columns(hidden, [&steps, l, tokens](int64_t begin, int64_t end) {
      steps.Projection(l, 0, tokens, begin, end, steps.workspace().whole);
    });
    phases->Add(num_blocks, [&steps, l](int64_t task, int) {
      const auto [row, rows] = steps.Block(task);
      steps.AttentionNorm(l, row, rows, steps.workspace().whole.From(row));
    });
    columns(inner, [&steps, l, tokens](int64_t begin, int64_t end) {
      steps.Intermediate(l, tokens, begin, end, begin, steps.workspace().whole);
    });
    columns(hidden, [&steps, l, tokens, inner](int64_t begin, int64_t end) {
      steps.Output(l, tokens, begin, end, 0, inner, steps.workspace().whole);
    });
    phases->Add(num_blocks, [&steps, l](int64_t task, int) {
      const auto [row, rows] = steps.Block(task);
      steps.OutputNorm(l, row, rows, steps.workspace().whole.From(row));
    });
  }
}

}  // namespace ft::cpu
