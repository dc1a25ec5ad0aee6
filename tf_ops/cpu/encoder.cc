#include "tf_ops/cpu/encoder.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "tf_ops/core/arena.h"
#include "tf_ops/cpu/kernels.h"

namespace ft::cpu {
namespace {

// Runs phases one after the other on all threads of a pool with a single ParallelFor. Whoever is
// there takes the next task, and no phase waits for a thread that has not come. (ParallelFor itself
// returns when every thread has come: TensorFlow's waits for all that it has scheduled.)
class Phases {
 public:
  using Task = std::function<void(int64_t task, int worker)>;

  void Add(int64_t num_tasks, Task task) {
    if (num_tasks > 0) phases_.push_back({num_tasks, std::move(task)});
  }

  void Run(ThreadPool* pool) {
    std::vector<Progress> progress(phases_.size());
    pool->ParallelFor(pool->num_threads(), [&](int64_t worker) {
      for (size_t p = 0; p < phases_.size(); ++p) {
        Progress& state = progress[p];
        const Phase& phase = phases_[p];
        while (true) {
          const int64_t task = state.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= phase.num_tasks) break;
          phase.task(task, static_cast<int>(worker));
          state.done.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; state.done.load(std::memory_order_acquire) < phase.num_tasks; ++spins) {
          if (spins > 4096) {
            std::this_thread::yield();
          } else {
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
          }
        }
      }
    });
  }

 private:
  struct Phase {
    int64_t num_tasks;
    Task task;
  };
  struct alignas(64) Progress {
    std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  std::vector<Phase> phases_;
};

// A right side in panels.
struct PackedMatrix {
  char* panels = nullptr;
  int64_t k = 0, n = 0, panel_bytes = 0;
};

struct PackedLayer {
  PackedMatrix qkv, projection, intermediate, output;
  float *qkv_bias, *projection_bias, *intermediate_bias, *output_bias;
  float *attention_gamma, *attention_beta, *output_gamma, *output_beta;
};

char* At(void* base, int64_t elements, int64_t element_bytes) {
  return static_cast<char*>(base) + elements * element_bytes;
}
const char* At(const void* base, int64_t elements, int64_t element_bytes) {
  return static_cast<const char*>(base) + elements * element_bytes;
}

bool AllEven(const EncoderConfig& config) {
  return config.head_size % 2 == 0 && config.inner_size % 2 == 0;
}

class CpuEncoder : public Encoder {
 public:
  explicit CpuEncoder(const EncoderConfig& config)
      : config_(config),
        kernels_(GetKernels(config.dtype, AllEven(config))),
        element_bytes_(SizeOf(kernels_.compute_dtype)),
        hidden_(config.hidden_size()) {}

  const EncoderConfig& config() const override { return config_; }

  int64_t PreparedWeightBytes() const override {
    Arena arena(nullptr);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) LayOut(&arena);
    return arena.used();
  }

  Status PrepareWeights(const std::vector<LayerWeights>& layers, void* packed,
                     const ExecutionContext& context) const override;

  Status WorkspaceBytes(const EncoderBatch& batch, const ExecutionContext& context,
                        int64_t* bytes) const override {
    *bytes = Plan(batch, context, nullptr).bytes;
    return OkStatus();
  }

  Status Run(const EncoderBatch& batch, const void* packed, void* workspace,
             const ExecutionContext& context) const override;

 private:
  struct WorkerScratch {
    float* sums;   // [block rows, H]
    char* hidden;  // [block rows, H]: after the attention's layer norm
    char* inner;   // [block rows, inner_ld]
    char* attention;
  };
  struct Workspace {
    char* x;        // [T,H]: a layer's input
    char* qkv;      // [T,3H]; attention writes its context over the queries
    int32_t* keys;  // [B]: keys to attend to; -1: all that exist, under the mask
    bool by_rows;   // tasks are blocks of rows; else blocks of columns, with whole-batch scratch
    int64_t num_tiles, num_blocks;  // blocks of rows are dealt whole tiles, equally but for one
    WorkerScratch whole;            // not by_rows
    std::vector<WorkerScratch> workers;
    int64_t bytes;
  };

  PackedMatrix LayOutMatrix(Arena* arena, int64_t k, int64_t n) const {
    PackedMatrix m;
    m.k = k;
    m.n = n;
    m.panel_bytes = PanelBytes(kernels_, k);
    m.panels =
        arena->Take<char>((n + kernels_.panel_width - 1) / kernels_.panel_width * m.panel_bytes);
    return m;
  }

  PackedLayer LayOut(Arena* arena) const {
    PackedLayer layer;
    layer.qkv = LayOutMatrix(arena, hidden_, 3 * hidden_);
    layer.projection = LayOutMatrix(arena, hidden_, hidden_);
    layer.intermediate = LayOutMatrix(arena, hidden_, config_.inner_size);
    layer.output = LayOutMatrix(arena, config_.inner_size, hidden_);
    layer.qkv_bias = arena->Take<float>(3 * hidden_ * 4);
    layer.projection_bias = arena->Take<float>(hidden_ * 4);
    layer.intermediate_bias = arena->Take<float>(config_.inner_size * 4);
    layer.output_bias = arena->Take<float>(hidden_ * 4);
    layer.attention_gamma = arena->Take<float>(hidden_ * 4);
    layer.attention_beta = arena->Take<float>(hidden_ * 4);
    layer.output_gamma = arena->Take<float>(hidden_ * 4);
    layer.output_beta = arena->Take<float>(hidden_ * 4);
    return layer;
  }

  // Padded by a cache line's worth of columns: rows do not fall on the same cache sets.
  int64_t InnerLd(int64_t columns) const { return columns + 32; }

  Workspace Plan(const EncoderBatch& batch, const ExecutionContext& context, void* base) const;
  void FindKeyLengths(const EncoderBatch& batch, int64_t b, int32_t* keys) const;
  void AttentionTask(const EncoderBatch& batch, const Workspace& w, int64_t task, int64_t splits,
                     void* scratch) const;

  // Columns [begin, end) of a * m, for rows of a. `c` or `out` as in GemmArgs, at column 0.
  GemmArgs Columns(const PackedMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                   int64_t end) const {
    GemmArgs g;
    g.a = a;
    g.lda = lda;
    g.panels = m.panels + begin / kernels_.panel_width * m.panel_bytes;
    g.panel_bytes = m.panel_bytes;
    g.rows = rows;
    g.k = m.k;
    g.cols = end - begin;
    g.c = nullptr;
    g.ldc = 0;
    g.accumulate = false;
    return g;
  }
  void GemmBias(const PackedMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                int64_t end, const float* bias, bool activate, void* out, int64_t ld_out) const {
    GemmArgs g = Columns(m, a, lda, rows, begin, end);
    g.out = At(out, begin, element_bytes_);
    g.ld_out = ld_out;
    g.bias = bias + begin;
    g.apply_activation = activate;
    g.activation = config_.activation;
    kernels_.gemm(g);
  }
  // sums[rows, H] = a * m, in chunks of the summed dimension.
  void GemmSums(const PackedMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                int64_t end, float* sums) const {
    for (int64_t k = 0; k < m.k; k += kernels_.inner_chunk) {
      GemmSumsChunk(m, At(a, k, element_bytes_), lda, rows, begin, end, k, sums);
    }
  }
  void GemmSumsChunk(const PackedMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                     int64_t end, int64_t k, float* sums) const {
    GemmArgs g = Columns(m, a, lda, rows, begin, end);
    g.panels = At(g.panels, k * kernels_.panel_width, element_bytes_);
    g.k = std::min(kernels_.inner_chunk, m.k - k);
    g.c = sums + begin;
    g.ldc = hidden_;
    g.accumulate = k > 0;
    kernels_.gemm(g);
  }
  void LayerNorm(const float* sums, const float* bias, const void* residual, const float* gamma,
                 const float* beta, void* out, int64_t rows) const {
    kernels_.add_bias_residual_layer_norm(
        {sums, bias, residual, gamma, beta, config_.layernorm_epsilon, out, rows, hidden_});
  }

  const EncoderConfig config_;
  const Kernels& kernels_;
  const int64_t element_bytes_;  // of the compute type
  const int64_t hidden_;
};

Status CpuEncoder::PrepareWeights(const std::vector<LayerWeights>& layers, void* packed,
                               const ExecutionContext& context) const {
  FT_RETURN_IF_ERROR(ValidateWeights(config_, layers));
  // Large pages make streaming the weights faster; the kernel is free to refuse.
  constexpr int64_t kHugePage = 2 << 20;
  const uintptr_t begin = AlignUp(reinterpret_cast<uintptr_t>(packed), kHugePage);
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(packed) + PreparedWeightBytes()) / kHugePage * kHugePage;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);

  Arena arena(packed);
  Phases phases;
  const DataType dtype = config_.dtype;
  for (const LayerWeights& w : layers) {
    const PackedLayer to = LayOut(&arena);
    const auto pack = [&](const PackedMatrix& m, std::vector<PanelSource> sources,
                          int64_t source_cols) {
      const int64_t width = kernels_.panel_width;
      phases.Add((m.n + width - 1) / width, [=, this](int64_t panel, int) {
        kernels_.pack_panel(sources.data(), source_cols, dtype, m.k, panel * width,
                            std::min(width, m.n - panel * width), m.panels + panel * m.panel_bytes);
      });
    };
    pack(to.qkv,
         {{w.query_kernel.data, hidden_},
          {w.key_kernel.data, hidden_},
          {w.value_kernel.data, hidden_}},
         hidden_);
    pack(to.projection, {{w.attention_output_kernel.data, hidden_}}, hidden_);
    pack(to.intermediate, {{w.intermediate_kernel.data, config_.inner_size}}, config_.inner_size);
    pack(to.output, {{w.output_kernel.data, hidden_}}, hidden_);
    const std::pair<const TensorView*, float*> vectors[] = {
        {&w.query_bias, to.qkv_bias},
        {&w.key_bias, to.qkv_bias + hidden_},
        {&w.value_bias, to.qkv_bias + 2 * hidden_},
        {&w.attention_output_bias, to.projection_bias},
        {&w.intermediate_bias, to.intermediate_bias},
        {&w.output_bias, to.output_bias},
        {&w.attention_layernorm_gamma, to.attention_gamma},
        {&w.attention_layernorm_beta, to.attention_beta},
        {&w.output_layernorm_gamma, to.output_gamma},
        {&w.output_layernorm_beta, to.output_beta}};
    for (const auto& [from, vector] : vectors) {
      Convert(from->data, dtype, vector, DataType::kFloat32, from->shape[0]);
    }
  }
  phases.Run(context.pool);
  return OkStatus();
}

CpuEncoder::Workspace CpuEncoder::Plan(const EncoderBatch& batch, const ExecutionContext& context,
                                       void* base) const {
  Workspace w;
  Arena arena(base);
  const int64_t tokens = batch.num_tokens, threads = context.pool->num_threads();
  w.by_rows = tokens >= threads * kernels_.min_rows_per_thread;
  const int64_t rounds =
      (tokens + threads * kernels_.block_rows - 1) / (threads * kernels_.block_rows);
  w.num_tiles = (tokens + kernels_.row_multiple - 1) / kernels_.row_multiple;
  w.num_blocks = std::max<int64_t>(1, std::min(w.num_tiles, rounds * threads));
  const int64_t block_rows =
      (w.num_tiles + w.num_blocks - 1) / w.num_blocks * kernels_.row_multiple;
  w.x = arena.Take<char>(tokens * hidden_ * element_bytes_);
  w.qkv = arena.Take<char>(tokens * 3 * hidden_ * element_bytes_);
  w.keys = arena.Take<int32_t>(batch.batch_size * 4);
  const auto scratch = [&](int64_t rows, int64_t inner_columns) {
    WorkerScratch s = {};
    s.sums = arena.Take<float>(rows * hidden_ * 4);
    s.hidden = arena.Take<char>(rows * hidden_ * element_bytes_);
    s.inner = arena.Take<char>(rows * InnerLd(inner_columns) * element_bytes_);
    return s;
  };
  w.whole = {};
  if (!w.by_rows) w.whole = scratch(tokens, config_.inner_size);
  for (int64_t i = 0; i < threads; ++i) {
    WorkerScratch s = {};
    if (w.by_rows) s = scratch(block_rows, std::min(kernels_.inner_chunk, config_.inner_size));
    s.attention =
        arena.Take<char>(kernels_.attention_scratch_bytes(batch.max_seq_len, config_.head_size));
    w.workers.push_back(s);
  }
  w.bytes = arena.used();
  return w;
}

// A mask that gives every query of sequence b the same first keys is as good as a length, and the
// masked keys need no arithmetic: exp(score - 10000) is 0 in float32.
void CpuEncoder::FindKeyLengths(const EncoderBatch& batch, int64_t b, int32_t* keys) const {
  const int64_t seq_len = batch.max_seq_len;
  int64_t exists = seq_len;
  if (batch.packed) {
    exists = batch.seq_offsets[b + 1] - batch.seq_offsets[b];
  } else if (batch.key_lengths != nullptr) {
    exists = batch.key_lengths[b];
  }
  keys[b] = static_cast<int32_t>(exists);
  if (batch.attention_mask == nullptr || exists == 0) return;
  const int64_t queries = batch.packed ? exists : seq_len;
  const int64_t bytes = SizeOf(config_.dtype);
  const char* mask = At(batch.attention_mask, b * seq_len * seq_len, bytes);
  uint32_t one = 0x3f800000u;  // float32
  if (config_.dtype == DataType::kFloat16) one = 0x3c00u;
  if (config_.dtype == DataType::kBFloat16) one = 0x3f80u;
  int64_t length = 0;
  while (length < exists && std::memcmp(mask + length * bytes, &one, bytes) == 0) ++length;
  bool prefix = length > 0;
  for (int64_t j = length; prefix && j < exists; ++j) {
    uint32_t value = 0;
    std::memcpy(&value, mask + j * bytes, bytes);
    prefix = value == 0;
  }
  for (int64_t i = 1; prefix && i < queries; ++i) {
    prefix = std::memcmp(mask + i * seq_len * bytes, mask, exists * bytes) == 0;
  }
  keys[b] = prefix ? static_cast<int32_t>(length) : -1;
}

// Task: one head of one sequence, or one of `splits` parts of its queries.
void CpuEncoder::AttentionTask(const EncoderBatch& batch, const Workspace& w, int64_t task,
                               int64_t splits, void* scratch) const {
  const int64_t split = task % splits;
  const int64_t head = task / splits % config_.num_heads;
  const int64_t b = task / splits / config_.num_heads;
  const int64_t seq_len = batch.max_seq_len;
  const int64_t row = batch.packed ? batch.seq_offsets[b] : b * seq_len;
  const int64_t queries = batch.packed ? batch.seq_offsets[b + 1] - row : seq_len;
  const int64_t per_split = AlignUp((queries + splits - 1) / splits, kernels_.row_multiple);
  const int64_t first = std::min(queries, split * per_split);
  AttentionArgs a;
  a.num_queries = std::min(queries, first + per_split) - first;
  if (a.num_queries == 0) return;
  a.num_keys = w.keys[b];
  a.mask = nullptr;
  a.mask_ld = seq_len;
  a.mask_dtype = config_.dtype;
  if (a.num_keys < 0) {
    a.num_keys = batch.packed ? queries : batch.key_lengths ? batch.key_lengths[b] : seq_len;
    a.mask = At(batch.attention_mask, (b * seq_len + first) * seq_len, SizeOf(config_.dtype));
  }
  a.head_size = config_.head_size;
  a.ld = 3 * hidden_;
  a.ld_out = a.ld;
  a.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size));
  char* base = At(w.qkv, row * a.ld + head * config_.head_size, element_bytes_);
  a.k = At(base, hidden_, element_bytes_);
  a.v = At(base, 2 * hidden_, element_bytes_);
  a.q = At(base, first * a.ld, element_bytes_);
  // In place: a tile of queries is read before its context is written, and no other task reads it.
  a.out = At(base, first * a.ld, element_bytes_);
  a.scratch = scratch;
  kernels_.attention(a);
}

Status CpuEncoder::Run(const EncoderBatch& batch, const void* packed, void* workspace,
                       const ExecutionContext& context) const {
  FT_RETURN_IF_ERROR(ValidateBatch(config_, batch));
  if (batch.num_tokens == 0) return OkStatus();
  const Workspace w = Plan(batch, context, workspace);
  const int64_t hidden = hidden_, tokens = batch.num_tokens, threads = context.pool->num_threads();
  const int64_t qkv_ld = 3 * hidden, bytes = element_bytes_;
  const bool converts = kernels_.compute_dtype != config_.dtype;
  const bool all_layers = batch.outputs.size() > 1;

  std::vector<PackedLayer> layers;
  Arena arena(const_cast<void*>(packed));
  for (int64_t l = 0; l < config_.num_layers; ++l) layers.push_back(LayOut(&arena));

  // Where layer l's input and output live. In the compute type they are the caller's tensors
  // wherever these exist; otherwise x, and outputs are converted.
  const auto input_of = [&](int64_t l) -> const void* {
    if (l == 0 && !converts) return batch.input;
    return l > 0 && all_layers && !converts ? batch.outputs[l - 1] : w.x;
  };
  const auto caller_output = [&](int64_t l) -> void* {
    if (all_layers) return batch.outputs[l];
    return l + 1 == config_.num_layers ? batch.outputs[0] : nullptr;
  };
  const auto output_of = [&](int64_t l) -> void* {
    void* output = caller_output(l);
    return output != nullptr && !converts ? output : w.x;
  };
  const auto block = [&](int64_t task) {
    const int64_t first = task * w.num_tiles / w.num_blocks * kernels_.row_multiple;
    const int64_t end = (task + 1) * w.num_tiles / w.num_blocks * kernels_.row_multiple;
    return std::make_pair(first, std::min(end, tokens) - first);
  };
  const auto emit = [&](int64_t l, int64_t row, int64_t rows) {
    if (!converts || caller_output(l) == nullptr) return;
    Convert(At(w.x, row * hidden, bytes), kernels_.compute_dtype,
            At(caller_output(l), row * hidden, SizeOf(config_.dtype)), config_.dtype,
            rows * hidden);
  };
  const auto qkv_rows = [&](int64_t l, int64_t row, int64_t rows) {
    const PackedLayer& layer = layers[l];
    GemmBias(layer.qkv, At(input_of(l), row * hidden, bytes), hidden, rows, 0, qkv_ld,
             layer.qkv_bias, false, At(w.qkv, row * qkv_ld, bytes), qkv_ld);
  };
  // Panels are dealt in ranges of whole panels, a few for each thread.
  const auto column_tasks = [&](int64_t n) {
    const int64_t panels = (n + kernels_.panel_width - 1) / kernels_.panel_width;
    const int64_t per_task = std::max<int64_t>(1, panels / (threads * 4));
    return std::make_pair((panels + per_task - 1) / per_task, per_task * kernels_.panel_width);
  };

  Phases phases;
  phases.Add(batch.batch_size, [&](int64_t b, int) { FindKeyLengths(batch, b, w.keys); });
  if (converts) {
    phases.Add(w.num_blocks, [&](int64_t task, int) {
      const auto [row, rows] = block(task);
      Convert(At(batch.input, row * hidden, SizeOf(config_.dtype)), config_.dtype,
              At(w.x, row * hidden, bytes), kernels_.compute_dtype, rows * hidden);
    });
  }
  const int64_t heads = batch.batch_size * config_.num_heads;
  const int64_t splits = heads >= 2 * threads ? 1 : (2 * threads + heads - 1) / heads;
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    const auto attention = [&, splits](int64_t task, int worker) {
      AttentionTask(batch, w, task, splits, w.workers[worker].attention);
    };
    if (w.by_rows) {
      if (l == 0) {
        phases.Add(w.num_blocks, [&, block, qkv_rows](int64_t task, int) {
          const auto [row, rows] = block(task);
          qkv_rows(0, row, rows);
        });
      }
      phases.Add(heads * splits, attention);
      phases.Add(w.num_blocks, [&, l](int64_t task, int worker) {
        const auto [row, rows] = block(task);
        const WorkerScratch& s = w.workers[worker];
        GemmSums(layers[l].projection, At(w.qkv, row * qkv_ld, bytes), qkv_ld, rows, 0, hidden,
                 s.sums);
        LayerNorm(s.sums, layers[l].projection_bias, At(input_of(l), row * hidden, bytes),
                  layers[l].attention_gamma, layers[l].attention_beta, s.hidden, rows);
        const int64_t inner = config_.inner_size,
                      ld = InnerLd(std::min(kernels_.inner_chunk, inner));
        for (int64_t k = 0; k < inner; k += kernels_.inner_chunk) {
          const int64_t end = std::min(inner, k + kernels_.inner_chunk);
          GemmBias(layers[l].intermediate, s.hidden, hidden, rows, k, end,
                   layers[l].intermediate_bias, true, At(s.inner, -k, bytes), ld);
          GemmSumsChunk(layers[l].output, s.inner, ld, rows, 0, hidden, k, s.sums);
        }
        LayerNorm(s.sums, layers[l].output_bias, s.hidden, layers[l].output_gamma,
                  layers[l].output_beta, At(output_of(l), row * hidden, bytes), rows);
        emit(l, row, rows);
        if (l + 1 < config_.num_layers) qkv_rows(l + 1, row, rows);
      });
      continue;
    }
    const auto columns = [&](int64_t n, std::function<void(int64_t, int64_t)> work) {
      const auto [tasks, width] = column_tasks(n);
      phases.Add(tasks, [n, width = width, work](int64_t task, int) {
        work(task * width, std::min(n, (task + 1) * width));
      });
    };
    const WorkerScratch& s = w.whole;
    const int64_t inner_ld = InnerLd(config_.inner_size);
    columns(qkv_ld, [&, l](int64_t begin, int64_t end) {
      GemmBias(layers[l].qkv, input_of(l), hidden, tokens, begin, end, layers[l].qkv_bias, false,
               w.qkv, qkv_ld);
    });
    phases.Add(heads * splits, attention);
    columns(hidden, [&, l](int64_t begin, int64_t end) {
      GemmSums(layers[l].projection, w.qkv, qkv_ld, tokens, begin, end, s.sums);
    });
    phases.Add(w.num_blocks, [&, l](int64_t task, int) {
      const auto [row, rows] = block(task);
      LayerNorm(s.sums + row * hidden, layers[l].projection_bias,
                At(input_of(l), row * hidden, bytes), layers[l].attention_gamma,
                layers[l].attention_beta, At(s.hidden, row * hidden, bytes), rows);
    });
    columns(config_.inner_size, [&, l, inner_ld](int64_t begin, int64_t end) {
      GemmBias(layers[l].intermediate, s.hidden, hidden, tokens, begin, end,
               layers[l].intermediate_bias, true, s.inner, inner_ld);
    });
    columns(hidden, [&, l, inner_ld](int64_t begin, int64_t end) {
      GemmSums(layers[l].output, s.inner, inner_ld, tokens, begin, end, s.sums);
    });
    phases.Add(w.num_blocks, [&, l](int64_t task, int) {
      const auto [row, rows] = block(task);
      LayerNorm(s.sums + row * hidden, layers[l].output_bias, At(s.hidden, row * hidden, bytes),
                layers[l].output_gamma, layers[l].output_beta,
                At(output_of(l), row * hidden, bytes), rows);
      emit(l, row, rows);
    });
  }
  phases.Run(context.pool);
  return OkStatus();
}

}  // namespace

Status CreateCpuEncoder(const EncoderConfig& config, std::unique_ptr<Encoder>* encoder) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  *encoder = std::make_unique<CpuEncoder>(config);
  return OkStatus();
}

}  // namespace ft::cpu
