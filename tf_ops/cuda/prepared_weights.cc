#include "tf_ops/cuda/prepared_weights.h"

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/rows/elementwise.h"

namespace ft {
namespace cuda {

WeightLayout::WeightLayout(const EncoderConfig& config) {
  const int64_t h = config.hidden_size(), i = config.inner_size;
  Arena arena(nullptr);
  const auto take = [&](int64_t elems) {
    const int64_t offset = arena.used();
    arena.Take(elems * SizeOf(config.dtype));
    return offset;
  };
  qkv_kernel = take(3 * h * h);
  qkv_bias = take(3 * h);
  attention_kernel = take(h * h);
  attention_bias = take(h);
  attention_beta = take(h);
  attention_gamma = take(h);
  inner_kernel = take(h * i);
  inner_bias = take(i);
  output_kernel = take(i * h);
  output_bias = take(h);
  output_beta = take(h);
  output_gamma = take(h);
  layer_bytes = arena.used();
}

Status PrepareWeights(const EncoderConfig& config, const std::vector<LayerWeights>& layers,
                      void* prepared, const LaunchContext& context) {
  const WeightLayout layout(config);
  const int64_t size = SizeOf(config.dtype), h = config.hidden_size();
  for (size_t index = 0; index < layers.size(); ++index) {
    const LayerWeights& layer = layers[index];
    char* const base = static_cast<char*>(prepared) + index * layout.layer_bytes;
    // A vector is a matrix of one row: one launch moves all sixteen.
    TransposeArgs args;
    const auto add = [&](const TensorView& view, int64_t offset) {
      auto& matrix = args.matrices[args.num_matrices++];
      const bool is_matrix = view.shape.size() == 2;
      matrix.input = view.data;
      matrix.output = base + offset;
      matrix.rows = is_matrix ? static_cast<int>(view.shape[0]) : 1;
      matrix.cols = static_cast<int>(view.shape[is_matrix ? 1 : 0]);
    };
    add(layer.query_kernel, layout.qkv_kernel);
    add(layer.key_kernel, layout.qkv_kernel + h * h * size);
    add(layer.value_kernel, layout.qkv_kernel + 2 * h * h * size);
    add(layer.attention_output_kernel, layout.attention_kernel);
    add(layer.intermediate_kernel, layout.inner_kernel);
    add(layer.output_kernel, layout.output_kernel);
    add(layer.query_bias, layout.qkv_bias);
    add(layer.key_bias, layout.qkv_bias + h * size);
    add(layer.value_bias, layout.qkv_bias + 2 * h * size);
    add(layer.attention_output_bias, layout.attention_bias);
    add(layer.attention_layernorm_beta, layout.attention_beta);
    add(layer.attention_layernorm_gamma, layout.attention_gamma);
    add(layer.intermediate_bias, layout.inner_bias);
    add(layer.output_bias, layout.output_bias);
    add(layer.output_layernorm_beta, layout.output_beta);
    add(layer.output_layernorm_gamma, layout.output_gamma);
    FT_RETURN_IF_ERROR(LaunchTranspose(args, static_cast<int>(size), context));
  }
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
