#include "tf_ops/cpu/prepared_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

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
    // What lies between the pieces is zero: the same weights give the same bytes, to save and to
    // compare. The vectors are the last pieces of a layer.
    float* const first_vector = config.int8_mode != 0 ? to.qkv_scale : to.qkv_bias;
    char* const end = static_cast<char*>(prepared) + arena.used();
    std::memset(first_vector, 0, end - reinterpret_cast<char*>(first_vector));
    if (config.int8_mode != 0) {
      *to.scales = ComputeScales(
          config, ranges[l],
          {to.qkv_scale, to.projection_scale, to.intermediate_scale, to.output_scale});
    }
    const auto add = [&](const PanelMatrix& m, std::vector<PanelSource> sources,
                         int64_t source_cols) {
      const int64_t width = gemm.panel_width;
      const int64_t bytes = (m.n + width - 1) / width * m.panel_bytes;
      std::memset(m.panels + bytes, 0, AlignUp(bytes, kAlignment) - bytes);
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
