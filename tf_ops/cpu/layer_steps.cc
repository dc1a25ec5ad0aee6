#include "tf_ops/cpu/layer_steps.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ft::cpu {

LayerSteps::LayerSteps(const EncoderConfig& config, const Primitives& primitives,
                       const EncoderBatch& batch, const void* prepared, const Workspace& workspace)
    : config_(config),
      primitives_(primitives),
      batch_(batch),
      workspace_(workspace),
      hidden_(config.hidden_size()),
      bytes_(SizeOf(primitives.compute_dtype)) {
  Arena arena(const_cast<void*>(prepared));
  for (int64_t l = 0; l < config.num_layers; ++l) {
    layers_.push_back(LayOutLayer(config, primitives.gemm, &arena));
  }
}

std::pair<int64_t, int64_t> LayerSteps::Block(int64_t task) const {
  const int64_t multiple = primitives_.gemm.row_multiple;
  const int64_t first = task * workspace_.num_tiles / workspace_.num_blocks * multiple;
  const int64_t end = (task + 1) * workspace_.num_tiles / workspace_.num_blocks * multiple;
  return {first, std::min(end, batch_.num_tokens) - first};
}

void* LayerSteps::CallerOutput(int64_t layer) const {
  if (batch_.outputs.size() > 1) return batch_.outputs[layer];
  return layer + 1 == config_.num_layers ? batch_.outputs[0] : nullptr;
}

const void* LayerSteps::InputOf(int64_t layer) const {
  if (layer > 0) return OutputOf(layer - 1);
  return converts() ? workspace_.x : batch_.input;
}

void* LayerSteps::OutputOf(int64_t layer) const {
  void* const output = CallerOutput(layer);
  return output != nullptr && !converts() ? output : workspace_.x;
}

void LayerSteps::ConvertInput(int64_t row, int64_t rows) const {
  Convert(At(batch_.input, row * hidden_, SizeOf(config_.dtype)), config_.dtype,
          At(workspace_.x, row * hidden_, bytes_), primitives_.compute_dtype, rows * hidden_);
}

void LayerSteps::ConvertOutput(int64_t layer, int64_t row, int64_t rows) const {
  if (!converts() || CallerOutput(layer) == nullptr) return;
  Convert(At(workspace_.x, row * hidden_, bytes_), primitives_.compute_dtype,
          At(CallerOutput(layer), row * hidden_, SizeOf(config_.dtype)), config_.dtype,
          rows * hidden_);
}

GemmArgs LayerSteps::Columns(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows,
                             int64_t begin, int64_t end) const {
  GemmArgs g;
  g.a = a;
  g.lda = lda;
  g.panels = m.panels + begin / primitives_.gemm.panel_width * m.panel_bytes;
  g.panel_bytes = m.panel_bytes;
  g.rows = rows;
  g.k = m.k;
  g.cols = end - begin;
  g.c = nullptr;
  g.ldc = 0;
  g.accumulate = false;
  return g;
}

void LayerSteps::Dense(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows,
                       int64_t begin, int64_t end, const float* bias, bool activate, void* out,
                       int64_t ld_out) const {
  GemmArgs g = Columns(m, a, lda, rows, begin, end);
  g.out = At(out, begin, bytes_);
  g.ld_out = ld_out;
  g.bias = bias + begin;
  g.apply_activation = activate;
  g.activation = config_.activation;
  primitives_.gemm.gemm(g);
}

void LayerSteps::Sums(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                      int64_t end, float* sums) const {
  for (int64_t k = 0; k < m.k; k += primitives_.gemm.inner_chunk) {
    SumsChunk(m, At(a, k, bytes_), lda, rows, begin, end, k, sums);
  }
}

void LayerSteps::SumsChunk(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows,
                           int64_t begin, int64_t end, int64_t k, float* sums) const {
  GemmArgs g = Columns(m, a, lda, rows, begin, end);
  g.panels = At(g.panels, k * primitives_.gemm.panel_width, bytes_);
  g.k = std::min(primitives_.gemm.inner_chunk, m.k - k);
  g.c = sums + begin;
  g.ldc = hidden_;
  g.accumulate = k > 0;
  primitives_.gemm.gemm(g);
}

void LayerSteps::QkvRows(int64_t layer, int64_t row, int64_t rows) const {
  Dense(layers_[layer].qkv, At(InputOf(layer), row * hidden_, bytes_), hidden_, rows, 0,
        3 * hidden_, layers_[layer].qkv_bias, false, At(workspace_.qkv, row * 3 * hidden_, bytes_),
        3 * hidden_);
}

void LayerSteps::Norm(const float* sums, const float* bias, const void* residual,
                      const float* gamma, const float* beta, void* out, int64_t rows) const {
  primitives_.norm.add_bias_residual_layer_norm(
      {sums, bias, residual, gamma, beta, config_.layernorm_epsilon, out, rows, hidden_});
}

void LayerSteps::AttentionNorm(int64_t layer, const float* sums, int64_t row, int64_t rows,
                               void* out) const {
  const PreparedLayer& w = layers_[layer];
  Norm(sums, w.projection_bias, At(InputOf(layer), row * hidden_, bytes_), w.attention_gamma,
       w.attention_beta, out, rows);
}

void LayerSteps::OutputNorm(int64_t layer, const float* sums, const void* residual, int64_t row,
                            int64_t rows) const {
  const PreparedLayer& w = layers_[layer];
  Norm(sums, w.output_bias, residual, w.output_gamma, w.output_beta,
       At(OutputOf(layer), row * hidden_, bytes_), rows);
  ConvertOutput(layer, row, rows);
}

void LayerSteps::FindKeyLengths(int64_t b) const {
  int32_t* const keys = workspace_.keys;
  const int64_t seq_len = batch_.max_seq_len;
  int64_t exists = seq_len;
  if (batch_.packed) {
    exists = batch_.seq_offsets[b + 1] - batch_.seq_offsets[b];
  } else if (batch_.key_lengths != nullptr) {
    exists = batch_.key_lengths[b];
  }
  keys[b] = static_cast<int32_t>(exists);
  if (batch_.attention_mask == nullptr || exists == 0) return;
  const int64_t queries = batch_.packed ? exists : seq_len;
  const int64_t bytes = SizeOf(config_.dtype);
  const char* mask = At(batch_.attention_mask, b * seq_len * seq_len, bytes);
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

void LayerSteps::Attention(int64_t task, int64_t splits, void* scratch) const {
  const int64_t split = task % splits;
  const int64_t head = task / splits % config_.num_heads;
  const int64_t b = task / splits / config_.num_heads;
  const int64_t seq_len = batch_.max_seq_len;
  const int64_t row = batch_.packed ? batch_.seq_offsets[b] : b * seq_len;
  const int64_t queries = batch_.packed ? batch_.seq_offsets[b + 1] - row : seq_len;
  const int64_t per_split = AlignUp((queries + splits - 1) / splits, primitives_.gemm.row_multiple);
  const int64_t first = std::min(queries, split * per_split);
  AttentionArgs a;
  a.num_queries = std::min(queries, first + per_split) - first;
  if (a.num_queries == 0) return;
  a.num_keys = workspace_.keys[b];
  a.mask = nullptr;
  a.mask_ld = seq_len;
  a.mask_dtype = config_.dtype;
  if (a.num_keys < 0) {
    a.num_keys = batch_.packed ? queries : batch_.key_lengths ? batch_.key_lengths[b] : seq_len;
    a.mask = At(batch_.attention_mask, (b * seq_len + first) * seq_len, SizeOf(config_.dtype));
  }
  a.head_size = config_.head_size;
  a.ld = 3 * hidden_;
  a.ld_out = a.ld;
  a.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size));
  char* const base = At(workspace_.qkv, row * a.ld + head * config_.head_size, bytes_);
  a.k = At(base, hidden_, bytes_);
  a.v = At(base, 2 * hidden_, bytes_);
  a.q = At(base, first * a.ld, bytes_);
  // In place: a tile of queries is read before its context is written, and no other task reads it.
  a.out = At(base, first * a.ld, bytes_);
  a.scratch = scratch;
  primitives_.attention.attention(a);
}

}  // namespace ft::cpu
