#include "tf_ops/cpu/schedules.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace ft::cpu {
namespace {

// Threads do not come nor end at once: a task's part more on the average than their rounds.
constexpr double kWaiting = 0.25;

// Into how many parts a head's queries are cut, where heads alone do not feed the threads.
int64_t AttentionSplits(const LayerSteps& steps, int64_t num_threads) {
  const int64_t heads = steps.batch().batch_size * steps.config().num_heads;
  const int64_t queries = steps.batch().max_seq_len, step = steps.primitives().gemm.row_step;
  // What a task does of the head's keys and values takes the time of so many queries.
  constexpr double kKeys = 12;
  int64_t best = 1;
  double best_time = 0;
  for (int64_t splits = 1; (splits - 1) * step < queries; ++splits) {
    const int64_t rows = AlignUp((queries + splits - 1) / splits, step);
    const double rounds = static_cast<double>((heads * splits + num_threads - 1) / num_threads);
    const double time = (rounds + kWaiting) * (static_cast<double>(rows) + kKeys);
    if (best_time == 0 || time < best_time) {
      best_time = time;
      best = splits;
    }
  }
  return best;
}

// One layer's attention: tasks are heads, or parts of their queries where there are few. What reads
// the result of a sequence's rows may overwrite its keys and values: all its heads are done by
// then.
void AddAttention(const LayerSteps& steps, std::shared_ptr<const RowParts> sequences,
                  int64_t splits, int64_t layer, Phases* phases) {
  phases->Add(std::move(sequences), steps.config().num_heads * splits,
              [&steps, layer, splits](int64_t b, int64_t task, int worker) {
                steps.Attention(layer, b, task, splits,
                                steps.workspace().workers[worker].attention);
              });
}

// The sizes up to `most`, and 1, of parts of `count` things that are fewer than with any smaller
// size. Other sizes only make the last part smaller.
std::vector<int64_t> PartSizes(int64_t count, int64_t most) {
  std::vector<int64_t> sizes = {1};
  for (int64_t size = 2, parts = count; size <= std::min(most, count); ++size) {
    const int64_t now = (count + size - 1) / size;
    if (now < parts) sizes.push_back(size);
    parts = now;
  }
  return sizes;
}

}  // namespace

void ScheduleByRows(const LayerSteps& steps, int64_t num_threads, Phases* phases) {
  const int64_t num_layers = steps.config().num_layers, hidden = steps.hidden();
  const auto sequences = steps.Sequences(), blocks = steps.Blocks();
  const int64_t splits = AttentionSplits(steps, num_threads);
  const auto add = [&](Phases::Task task) {
    phases->Add(blocks, 1, [task](int64_t block, int64_t, int worker) { task(block, worker); });
  };
  add([&steps, hidden](int64_t block, int worker) {
    const auto [row, rows] = steps.Block(block);
    steps.Qkv(0, row, rows, 0, 3 * hidden, steps.workspace().workers[worker]);
  });
  for (int64_t l = 0; l < num_layers; ++l) {
    AddAttention(steps, sequences, splits, l, phases);
    add([&steps, l, hidden, num_layers](int64_t block, int worker) {
      const auto [row, rows] = steps.Block(block);
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
      if (l + 1 < num_layers) steps.Qkv(l + 1, row, rows, 0, 3 * hidden, s);
    });
  }
}

Grid::Grid(const Primitives& primitives, int64_t num_rows, int64_t num_columns,
           int64_t num_threads) {
  const int64_t height = primitives.gemm.row_step, width = primitives.gemm.panel_width;
  const int64_t panels = (num_columns + width - 1) / width;
  // Many threads do not end at once, and smaller tasks level that out: with 16 on an Emerald Rapids
  // Xeon, at batch 8 and length 128, 64 rows took 134 ms where 128 took 154 in float32, 42 and 47
  // in bfloat16; at length 384 432, 463, 106 and 118.
  constexpr int64_t kManyThreads = 8;
  const int64_t most = primitives.schedule.grid_rows / (num_threads >= kManyThreads ? 2 : 1);
  const std::vector<int64_t> widths = PartSizes(panels, panels);
  rows = columns = 0;
  double best = 0;
  for (const int64_t h : PartSizes((num_rows + height - 1) / height, most / height)) {
    for (const int64_t w : widths) {
      const double r = static_cast<double>(std::min(h * height, num_rows));
      const double c = static_cast<double>(std::min(w * width, num_columns));
      const int64_t tasks = ((num_rows + h * height - 1) / (h * height)) * ((panels + w - 1) / w);
      const double rounds = static_cast<double>((tasks + num_threads - 1) / num_threads);
      // A row or a column costs the time of so many of a task's elements besides them.
      constexpr double kReading = 32;
      const double time = (rounds + kWaiting) * (r * c + kReading * (r + c));
      if (best == 0 || time < best) {
        best = time;
        rows = h * height;
        columns = w * width;
      }
    }
  }
}

void ScheduleByGrid(const LayerSteps& steps, int64_t num_threads, Phases* phases) {
  const EncoderConfig& config = steps.config();
  const int64_t hidden = steps.hidden(), inner = config.inner_size;
  const int64_t tokens = steps.batch().num_tokens;
  // work(row, rows, begin, end, s) for all parts of a product of n columns.
  using Work = std::function<void(int64_t, int64_t, int64_t, int64_t, const WorkerScratch&)>;
  const auto sequences = steps.Sequences(), blocks = steps.Blocks();
  const int64_t splits = AttentionSplits(steps, num_threads);
  struct Deal {
    Grid grid;
    std::shared_ptr<const RowParts> parts;
  };
  const auto deal = [&](int64_t n) {
    const Grid grid(steps.primitives(), tokens, n, num_threads);
    auto parts = std::make_shared<RowParts>();
    for (int64_t row = 0; row < tokens; row += grid.rows) {
      parts->edges.push_back(std::min(row + grid.rows, tokens));
    }
    return Deal{grid, std::move(parts)};
  };
  const Deal to_hidden = deal(hidden), to_qkv = deal(3 * hidden), to_inner = deal(inner);
  const auto product = [&](const Deal& dealt, int64_t n, int64_t l,
                           PanelMatrix PreparedLayer::* matrix, Work work) {
    const Grid& grid = dealt.grid;
    phases->Add(
        dealt.parts, (n + grid.columns - 1) / grid.columns,
        [&steps, n, tokens, grid, work](int64_t part, int64_t index, int worker) {
          const int64_t row = part * grid.rows, begin = index * grid.columns;
          work(row, std::min(grid.rows, tokens - row), begin, std::min(n, begin + grid.columns),
               steps.workspace().From(row, worker));
        },
        [&steps, l, matrix, grid](int64_t index) {
          return steps.FirstPanel(l, matrix, index * grid.columns);
        });
  };
  using Norm = void (LayerSteps::*)(int64_t, int64_t, int64_t, const WorkerScratch&) const;
  const auto norm = [&](int64_t l, Norm step) {
    phases->Add(blocks, 1, [&steps, l, step](int64_t block, int64_t, int worker) {
      const auto [row, rows] = steps.Block(block);
      (steps.*step)(l, row, rows, steps.workspace().From(row, worker));
    });
  };
  for (int64_t l = 0; l < config.num_layers; ++l) {
    product(to_qkv, 3 * hidden, l, &PreparedLayer::qkv,
            [&steps, l](int64_t row, int64_t rows, int64_t begin, int64_t end,
                        const WorkerScratch& s) { steps.Qkv(l, row, rows, begin, end, s); });
    AddAttention(steps, sequences, splits, l, phases);
    product(to_hidden, hidden, l, &PreparedLayer::projection,
            [&steps, l](int64_t row, int64_t rows, int64_t begin, int64_t end,
                        const WorkerScratch& s) { steps.Projection(l, row, rows, begin, end, s); });
    norm(l, &LayerSteps::AttentionNorm);
    product(to_inner, inner, l, &PreparedLayer::intermediate,
            [&steps, l](int64_t, int64_t rows, int64_t begin, int64_t end, const WorkerScratch& s) {
              steps.Intermediate(l, rows, begin, end, begin, s);
            });
    product(to_hidden, hidden, l, &PreparedLayer::output,
            [&steps, l, inner](int64_t, int64_t rows, int64_t begin, int64_t end,
                               const WorkerScratch& s) {
              steps.Output(l, rows, begin, end, 0, inner, s);
            });
    norm(l, &LayerSteps::OutputNorm);
  }
}

}  // namespace ft::cpu
