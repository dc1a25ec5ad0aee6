#include "tf_ops/cpu/prepared_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "tf_ops/core/scales.h"
#include "tf_ops/cpu/phases.h"

namespace ft::cpu {
namespace {

PanelMatrix LayOutMatrix(const GemmPrimitives& gemm, int64_t k, int64_t n, Arena* arena) {
  PanelMatrix m;
  m.k = k;
  m.n = n;
  m.panel_bytes = gemm.PanelBytes(k);
  m.panels = arena->Take<char>((n + gemm.panel_width - 1) / gemm.panel_width * m.panel_bytes);
  return m;
}

// Large pages make streaming the weights faster; the system is free to refuse.
void AskForLargePages(void* memory, int64_t bytes) {
  constexpr int64_t kLargePage = 2 << 20;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = AlignUp(address, kLargePage);
  const uintptr_t end = (address + bytes) / kLargePage * kLargePage;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Fills the scales of a layer, as docs/int8.md computes them.
void PrepareScales(const EncoderConfig& config, const LayerRanges& ranges,
                   const PreparedLayer& to) {
  constexpr float kBound = 127.0f;
  const auto fill = [&](float in, const float* columns, float rounded, int64_t count,
                        float* scale) {
    // Integers stand for their products' unit; mode 2 divides it by that of the rounding.
    const float divisor = rounded > 0.0f ? kBound * rounded : kBound * kBound;
    for (int64_t i = 0; i < count; ++i) scale[i] = in * columns[i] / divisor;
  };
  const int64_t hidden = config.hidden_size();
  const bool rounds = config.quantizes_residuals();
  fill(ranges.input, ranges.query, 0.0f, hidden, to.qkv_scale);
  fill(ranges.input, ranges.key, 0.0f, hidden, to.qkv_scale + hidden);
  fill(ranges.input, ranges.value, 0.0f, hidden, to.qkv_scale + 2 * hidden);
  fill(ranges.context, ranges.attention_output, rounds ? ranges.projection : 0.0f, hidden,
       to.projection_scale);
  fill(ranges.attention_norm, ranges.intermediate, 0.0f, config.inner_size, to.intermediate_scale);
  fill(ranges.inner, ranges.output_kernel, rounds ? ranges.output_product : 0.0f, hidden,
       to.output_scale);
  LayerScales& s = *to.scales;
  s = {};
  s.input_scale = kBound / ranges.input;
  s.input_unit = ranges.input / kBound;
  s.context_scale = kBound / ranges.context;
  s.norm_scale = kBound / ranges.attention_norm;
  s.norm_unit = ranges.attention_norm / kBound;
  s.inner_scale = kBound / ranges.inner;
  if (!rounds) return;
  s.projection_unit = ranges.projection / kBound;
  s.product_unit = ranges.output_product / kBound;
  s.output_scale = kBound / ranges.output;
  s.output_unit = ranges.output / kBound;
}

}  // namespace

PreparedLayer LayOutLayer(const EncoderConfig& config, const GemmPrimitives& gemm, Arena* arena) {
  const int64_t hidden = config.hidden_size(), inner = config.inner_size;
  PreparedLayer layer = {};
  layer.qkv = LayOutMatrix(gemm, hidden, 3 * hidden, arena);
  layer.projection = LayOutMatrix(gemm, hidden, hidden, arena);
  layer.intermediate = LayOutMatrix(gemm, hidden, inner, arena);
  layer.output = LayOutMatrix(gemm, inner, hidden, arena);
  if (config.int8_mode != 0) {
    layer.qkv_scale = arena->Take<float>(3 * hidden * 4);
    layer.projection_scale = arena->Take<float>(hidden * 4);
    layer.intermediate_scale = arena->Take<float>(inner * 4);
    layer.output_scale = arena->Take<float>(hidden * 4);
    layer.scales = arena->Take<LayerScales>(sizeof(LayerScales));
  }
  layer.qkv_bias = arena->Take<float>(3 * hidden * 4);
  layer.projection_bias = arena->Take<float>(hidden * 4);
  layer.intermediate_bias = arena->Take<float>(inner * 4);
  layer.output_bias = arena->Take<float>(hidden * 4);
  layer.attention_gamma = arena->Take<float>(hidden * 4);
  layer.attention_beta = arena->Take<float>(hidden * 4);
  layer.output_gamma = arena->Take<float>(hidden * 4);
  layer.output_beta = arena->Take<float>(hidden * 4);
  return layer;
}

Status PrepareWeights(const EncoderConfig& config, const GemmPrimitives& gemm,
                      const std::vector<LayerWeights>& layers, void* prepared, ThreadPool* pool) {
  std::vector<LayerRanges> ranges;
  FT_RETURN_IF_ERROR(ReadAllRanges(config, layers, &ranges));
  Arena counted(nullptr);
  for (size_t i = 0; i < layers.size(); ++i) LayOutLayer(config, gemm, &counted);
  AskForLargePages(prepared, counted.used());

  const int64_t hidden = config.hidden_size(), inner = config.inner_size;
  const DataType dtype = config.dtype;
  Arena arena(prepared);
  Phases phases;
  for (size_t l = 0; l < layers.size(); ++l) {
    const LayerWeights& w = layers[l];
    const PreparedLayer to = LayOutLayer(config, gemm, &arena);
    if (config.int8_mode != 0) PrepareScales(config, ranges[l], to);
    const auto add = [&](const PanelMatrix& m, std::vector<PanelSource> sources,
                         int64_t source_cols) {
      const int64_t width = gemm.panel_width;
      const auto make_panel = gemm.make_panel;
      phases.Add((m.n + width - 1) / width, [=](int64_t panel, int) {
        make_panel(sources.data(), source_cols, dtype, m.k, panel * width,
                   std::min(width, m.n - panel * width), m.panels + panel * m.panel_bytes);
      });
    };
    add(to.qkv,
        {{w.query_kernel.data, hidden}, {w.key_kernel.data, hidden}, {w.value_kernel.data, hidden}},
        hidden);
    add(to.projection, {{w.attention_output_kernel.data, hidden}}, hidden);
    add(to.intermediate, {{w.intermediate_kernel.data, inner}}, inner);
    add(to.output, {{w.output_kernel.data, hidden}}, hidden);
    const std::pair<const TensorView*, float*> vectors[] = {
        {&w.query_bias, to.qkv_bias},
        {&w.key_bias, to.qkv_bias + hidden},
        {&w.value_bias, to.qkv_bias + 2 * hidden},
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
  phases.Run(pool);
  return OkStatus();
}

}  // namespace ft::cpu
