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
      hidden_(config.hidden_size()) {
  Arena arena(const_cast<void*>(prepared));
  for (int64_t l = 0; l < config.num_layers; ++l) {
    layers_.push_back(LayOutLayer(config, primitives.gemm, &arena));
  }
}

std::pair<int64_t, int64_t> LayerSteps::Block(int64_t task) const {
  const Workspace& w = workspace_;
  const int64_t first = task * w.num_units / w.num_blocks * w.unit_rows;
  const int64_t end = (task + 1) * w.num_units / w.num_blocks * w.unit_rows;
  return {first, std::min(end, batch_.num_tokens) - first};
}

std::shared_ptr<const RowParts> LayerSteps::Blocks() const {
  auto parts = std::make_shared<RowParts>();
  for (int64_t i = 0; i < workspace_.num_blocks; ++i) {
    const auto [row, rows] = Block(i);
    parts->edges.push_back(row + rows);
  }
  return parts;
}

std::shared_ptr<const RowParts> LayerSteps::Sequences() const {
  auto parts = std::make_shared<RowParts>();
  for (int64_t b = 1; b <= batch_.batch_size; ++b) {
    parts->edges.push_back(batch_.packed ? batch_.seq_offsets[b] : b * batch_.max_seq_len);
  }
  return parts;
}

void* LayerSteps::CallerOutput(int64_t layer) const {
  if (batch_.outputs.size() > 1) return batch_.outputs[layer];
  return layer + 1 == config_.num_layers ? batch_.outputs[0] : nullptr;
}

Rows LayerSteps::InputOf(int64_t layer) const {
  if (layer > 0) return OutputOf(layer - 1);
  if (copies()) return workspace_.x;
  // Only read.
  return {static_cast<char*>(const_cast<void*>(batch_.input)), hidden_, workspace_.x.bytes};
}

Rows LayerSteps::OutputOf(int64_t layer) const {
  void* const output = CallerOutput(layer);
  if (output == nullptr || copies()) return workspace_.x;
  return {static_cast<char*>(output), hidden_, workspace_.x.bytes};
}

template <typename CopyRows>
void LayerSteps::ForCallersRows(int64_t row, int64_t rows, CopyRows copy) const {
  if (!batch_.has_padded_tensors) return copy(row, rows, row);
  const int32_t* const offsets = batch_.seq_offsets;
  // The last sequence that begins at `row` or before: others that begin there are empty.
  int64_t b = std::upper_bound(offsets, offsets + batch_.batch_size + 1, row) - offsets - 1;
  for (const int64_t end = row + rows; row < end; ++b) {
    const int64_t count = std::min<int64_t>(offsets[b + 1], end) - row;
    copy(row, count, b * batch_.max_seq_len + row - offsets[b]);
    row += count;
  }
}

void LayerSteps::CopyOutput(int64_t layer, int64_t row, int64_t rows) const {
  char* const output = static_cast<char*>(CallerOutput(layer));
  if (!copies() || output == nullptr) return;
  const int64_t row_bytes = hidden_ * SizeOf(config_.dtype);
  ForCallersRows(row, rows, [&](int64_t from, int64_t count, int64_t at) {
    Convert(workspace_.x.At(from), primitives_.compute_dtype, output + at * row_bytes,
            config_.dtype, count * hidden_);
  });
}

void LayerSteps::PrepareInput(int64_t row, int64_t rows) const {
  if (copies()) {
    ForCallersRows(row, rows, [&](int64_t to, int64_t count, int64_t at) {
      Convert(At(batch_.input, at * hidden_, SizeOf(config_.dtype)), config_.dtype,
              workspace_.x.At(to), primitives_.compute_dtype, count * hidden_);
    });
  }
  if (!integers()) return;
  primitives_.quantize({InputOf(0).At(row), rows, hidden_, layers_[0].scales->input_scale,
                        workspace_.x_int.At(row), workspace_.x_int.stride});
}

void LayerSteps::ClearPadding(int64_t b) const {
  if (!batch_.has_padded_tensors) return;
  const int64_t row_bytes = hidden_ * SizeOf(config_.dtype);
  const int64_t tokens = batch_.seq_offsets[b + 1] - batch_.seq_offsets[b];
  for (void* output : batch_.outputs) {
    std::memset(static_cast<char*>(output) + (b * batch_.max_seq_len + tokens) * row_bytes, 0,
                (batch_.max_seq_len - tokens) * row_bytes);
  }
}

const char* LayerSteps::PanelOf(const PanelMatrix& m, int64_t column) const {
  return m.panels + column / primitives_.gemm.panel_width * m.panel_bytes;
}

const char* LayerSteps::PanelAt(const PanelMatrix& m, int64_t column, int64_t k) const {
  const GemmPrimitives& gemm = primitives_.gemm;
  return PanelOf(m, column) + gemm.header_bytes + k * gemm.panel_width * SizeOf(gemm.weight);
}

Phases::Bytes LayerSteps::FirstPanel(int64_t layer, PanelMatrix PreparedLayer::* matrix,
                                     int64_t begin) const {
  const GemmPrimitives& gemm = primitives_.gemm;
  const PanelMatrix& m = layers_[layer].*matrix;
  return {PanelAt(m, begin, 0),
          std::min(m.k, gemm.inner_chunk) * gemm.panel_width * SizeOf(gemm.weight)};
}

GemmArgs LayerSteps::Columns(const PanelMatrix& m, const Rows& a, int64_t row, int64_t rows,
                             int64_t begin, int64_t end, const WorkerScratch& s) const {
  GemmArgs g;
  g.a = a.At(row);
  g.lda = a.stride;
  g.panels = PanelOf(m, begin);
  g.panel_bytes = m.panel_bytes;
  g.rows = rows;
  g.k = m.k;
  g.cols = end - begin;
  // A worker's tasks are one after the other in a product's columns.
  if (end < m.n) g.next_panel = PanelAt(m, end, 0);
  g.scratch = s.gemm;
  return g;
}

void LayerSteps::Qkv(int64_t layer, int64_t row, int64_t rows, int64_t begin, int64_t end,
                     const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  GemmArgs g =
      Columns(w.qkv, integers() ? workspace_.x_int : InputOf(layer), row, rows, begin, end, s);
  if (integers()) g.scale = w.qkv_scale + begin;
  g.out = workspace_.qkv.At(row, begin);
  g.ld_out = workspace_.qkv.stride;
  g.bias = w.qkv_bias + begin;
  primitives_.gemm.gemm(g);
}

void LayerSteps::Sum(GemmArgs g, const PanelMatrix& m, const float* scale, float rounded_unit,
                     int64_t begin, const WorkerScratch& s) const {
  const int64_t end = g.first_k + g.k, chunk = primitives_.gemm.inner_chunk;
  const char* const a =
      static_cast<const char*>(g.a) - g.first_k * SizeOf(primitives_.gemm.activation);
  g.c = s.sums + begin;
  g.ldc = hidden_;
  const void* const next_panel = g.next_panel;
  for (; g.first_k < end; g.first_k += chunk) {
    g.a = a + g.first_k * SizeOf(primitives_.gemm.activation);
    g.k = std::min(chunk, end - g.first_k);
    const bool is_last = g.first_k + chunk >= end;
    g.next_panel = is_last ? next_panel : PanelAt(m, begin, g.first_k + chunk);
    if (integers() && g.first_k + g.k == m.k) {
      g.scale = scale + begin;
      g.rounded_unit = rounded_unit;
    }
    primitives_.gemm.gemm(g);
  }
}

void LayerSteps::Projection(int64_t layer, int64_t row, int64_t rows, int64_t begin, int64_t end,
                            const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  Sum(Columns(w.projection, workspace_.context, row, rows, begin, end, s), w.projection,
      w.projection_scale, integers() ? w.scales->projection_unit : 0.0f, begin, s);
}

void LayerSteps::Intermediate(int64_t layer, int64_t rows, int64_t begin, int64_t end, int64_t at,
                              const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  GemmArgs g =
      Columns(w.intermediate, integers() ? s.hidden_int : s.hidden, 0, rows, begin, end, s);
  if (integers()) {
    g.scale = w.intermediate_scale + begin;
    g.out_scale = w.scales->inner_scale;
  }
  g.out = s.inner.At(0, at);
  g.ld_out = s.inner.stride;
  g.bias = w.intermediate_bias + begin;
  g.apply_activation = true;
  g.activation = config_.activation;
  primitives_.gemm.gemm(g);
}

void LayerSteps::Output(int64_t layer, int64_t rows, int64_t begin, int64_t end, int64_t k,
                        int64_t num_k, const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  GemmArgs g = Columns(w.output, s.inner, 0, rows, begin, end, s);
  g.first_k = k;
  g.k = num_k;
  Sum(g, w.output, w.output_scale, integers() ? w.scales->product_unit : 0.0f, begin, s);
}

LayerNormArgs LayerSteps::NormArgs(const float* sums, const float* bias, const float* gamma,
                                   const float* beta, int64_t rows) const {
  LayerNormArgs n = {};
  n.x = sums;
  n.bias = bias;
  n.gamma = gamma;
  n.beta = beta;
  n.epsilon = config_.layernorm_epsilon;
  n.rows = rows;
  n.n = hidden_;
  return n;
}

void LayerSteps::AttentionNorm(int64_t layer, int64_t row, int64_t rows,
                               const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  LayerNormArgs n = NormArgs(s.sums, w.projection_bias, w.attention_gamma, w.attention_beta, rows);
  n.residual = InputOf(layer).At(row);
  n.ld_residual = hidden_;
  n.out = s.hidden.data;
  if (integers()) {
    n.out_int = s.hidden_int.data;
    n.ld_int = s.hidden_int.stride;
    n.int_scale = w.scales->norm_scale;
  }
  if (config_.quantizes_residuals()) {
    n.residual = workspace_.x_int.At(row);
    n.ld_residual = workspace_.x_int.stride;
    n.residual_unit = w.scales->input_unit;
    n.out = nullptr;
  }
  primitives_.norm.add_bias_residual_layer_norm(n);
}

void LayerSteps::OutputNorm(int64_t layer, int64_t row, int64_t rows,
                            const WorkerScratch& s) const {
  const PreparedLayer& w = layers_[layer];
  const bool is_last = layer + 1 == config_.num_layers;
  LayerNormArgs n = NormArgs(s.sums, w.output_bias, w.output_gamma, w.output_beta, rows);
  n.residual = s.hidden.data;
  n.ld_residual = s.hidden.stride;
  n.out = OutputOf(layer).At(row);
  // Whether the output is the integers' numbers, not the layer norm's.
  const bool rounds = config_.quantizes_residuals() && !(is_last && config_.has_last_layer);
  if (integers() && (rounds || !is_last)) {
    n.out_int = workspace_.x_int.At(row);
    n.ld_int = workspace_.x_int.stride;
    n.int_scale = rounds ? w.scales->output_scale : layers_[layer + 1].scales->input_scale;
  }
  if (config_.quantizes_residuals()) {
    n.residual = s.hidden_int.data;
    n.ld_residual = s.hidden_int.stride;
    n.residual_unit = w.scales->norm_unit;
  }
  if (rounds) {
    n.out_unit = w.scales->output_unit;
    if (CallerOutput(layer) == nullptr) n.out = nullptr;
  }
  primitives_.norm.add_bias_residual_layer_norm(n);
  if (n.out != nullptr) CopyOutput(layer, row, rows);
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

void LayerSteps::Attention(int64_t layer, int64_t b, int64_t task, int64_t splits,
                           void* scratch) const {
  const int64_t split = task % splits, head = task / splits;
  const int64_t seq_len = batch_.max_seq_len;
  const int64_t row = batch_.packed ? batch_.seq_offsets[b] : b * seq_len;
  const int64_t queries = batch_.packed ? batch_.seq_offsets[b + 1] - row : seq_len;
  const int64_t per_split = AlignUp((queries + splits - 1) / splits, primitives_.gemm.row_step);
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
  const Rows& qkv = workspace_.qkv;
  const int64_t column = head * config_.head_size;
  a.ld = qkv.stride;
  a.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size));
  a.k = qkv.At(row, hidden_ + column);
  a.v = qkv.At(row, 2 * hidden_ + column);
  a.q = qkv.At(row + first, column);
  // Where context is the queries: a tile of them is read before its context is written, and no
  // other task reads it.
  a.out = workspace_.context.At(row + first, column);
  a.ld_out = workspace_.context.stride;
  if (integers()) a.out_scale = layers_[layer].scales->context_scale;
  a.scratch = scratch;
  primitives_.attention.attention(a);
}

}  // namespace ft::cpu
