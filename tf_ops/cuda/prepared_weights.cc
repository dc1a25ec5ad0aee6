#include "tf_ops/cuda/prepared_weights.h"

#include <cstring>
#include <utility>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"
#include "tf_ops/cuda/rows/elementwise.h"
#include "tf_ops/cuda/rows/split_rows.h"

namespace ft {
namespace cuda {
namespace {

// Moves the weights of one layer: matrices of elements of one size, vectors of another.
class LayerMover {
 public:
  LayerMover(const EncoderConfig& config, char* base) : config_(config), base_(base) {}

  void Add(const TensorView& view, int64_t offset) {
    // A vector is a matrix of one row: one launch moves many.
    const bool is_matrix = view.shape.size() == 2;
    TransposeArgs& args = is_matrix ? matrices_ : vectors_;
    auto& matrix = args.matrices[args.num_matrices++];
    matrix.input = view.data;
    matrix.output = base_ + offset;
    matrix.rows = is_matrix ? static_cast<int>(view.shape[0]) : 1;
    matrix.cols = static_cast<int>(view.shape[is_matrix ? 1 : 0]);
  }

  Status Launch(const LaunchContext& context) const {
    FT_RETURN_IF_ERROR(
        LaunchTranspose(matrices_, static_cast<int>(SizeOf(config_.matrix_dtype())), context));
    return LaunchTranspose(vectors_, static_cast<int>(SizeOf(config_.dtype)), context);
  }

 private:
  const EncoderConfig& config_;
  char* const base_;
  TransposeArgs matrices_, vectors_;
};

Status MoveWeights(const EncoderConfig& config, const WeightLayout& layout,
                   const LayerWeights& layer, char* base, const LaunchContext& context) {
  const int64_t h = config.hidden_size(), size = SizeOf(config.dtype);
  const int64_t matrix_bytes = h * h * SizeOf(config.matrix_dtype());
  LayerMover mover(config, base);
  mover.Add(layer.query_kernel, layout.qkv_kernel);
  mover.Add(layer.key_kernel, layout.qkv_kernel + matrix_bytes);
  mover.Add(layer.value_kernel, layout.qkv_kernel + 2 * matrix_bytes);
  mover.Add(layer.attention_output_kernel, layout.attention_kernel);
  mover.Add(layer.intermediate_kernel, layout.inner_kernel);
  mover.Add(layer.output_kernel, layout.output_kernel);
  mover.Add(layer.query_bias, layout.qkv_bias);
  mover.Add(layer.key_bias, layout.qkv_bias + h * size);
  mover.Add(layer.value_bias, layout.qkv_bias + 2 * h * size);
  mover.Add(layer.attention_output_bias, layout.attention_bias);
  mover.Add(layer.attention_layernorm_beta, layout.attention_beta);
  mover.Add(layer.attention_layernorm_gamma, layout.attention_gamma);
  mover.Add(layer.intermediate_bias, layout.inner_bias);
  mover.Add(layer.output_bias, layout.output_bias);
  mover.Add(layer.output_layernorm_beta, layout.output_beta);
  mover.Add(layer.output_layernorm_gamma, layout.output_gamma);
  FT_RETURN_IF_ERROR(mover.Launch(context));
  if (config.fp8_mode == 0) return OkStatus();
  const int64_t i = config.inner_size;
  const std::pair<int64_t, int64_t> matrices[] = {{layout.qkv_kernel, 3 * h * h},
                                                  {layout.attention_kernel, h * h},
                                                  {layout.inner_kernel, h * i},
                                                  {layout.output_kernel, i * h}};
  for (const auto& [offset, elems] : matrices) {
    FT_RETURN_IF_ERROR(LaunchIntegersToFloat8(base + offset, elems, context));
  }
  return OkStatus();
}

// Puts the matrices of one layer of float32 at the layout's split offsets.
Status SplitMatrices(const EncoderConfig& config, const WeightLayout& layout,
                     const LayerWeights& layer, char* base, const LaunchContext& context) {
  const int64_t h = config.hidden_size();
  // The columns from `first` of the product on.
  const auto split = [&](const TensorView& view, const SplitWeight& to, int64_t first) {
    const int64_t k = view.shape[0], n = view.shape[1];
    return LaunchSplitWeights(static_cast<const float*>(view.data), k, n,
                              base + to.kernel + first * SplitPitch(k) * 4,
                              reinterpret_cast<float*>(base + to.scale) + first, context);
  };
  FT_RETURN_IF_ERROR(split(layer.query_kernel, layout.qkv_split, 0));
  FT_RETURN_IF_ERROR(split(layer.key_kernel, layout.qkv_split, h));
  FT_RETURN_IF_ERROR(split(layer.value_kernel, layout.qkv_split, 2 * h));
  FT_RETURN_IF_ERROR(split(layer.attention_output_kernel, layout.attention_split, 0));
  FT_RETURN_IF_ERROR(split(layer.intermediate_kernel, layout.inner_split, 0));
  return split(layer.output_kernel, layout.output_split, 0);
}

// The scales of a layer, from offset layout.qkv_scale on.
std::vector<char> MakeScales(const EncoderConfig& config, const WeightLayout& layout,
                             const LayerRanges& ranges) {
  std::vector<char> bytes(layout.scales + sizeof(LayerScales) - layout.qkv_scale);
  const auto at = [&](int64_t offset) {
    return reinterpret_cast<float*>(bytes.data() + offset - layout.qkv_scale);
  };
  const LayerScales scales = ComputeScales(config, ranges,
                                           {at(layout.qkv_scale), at(layout.attention_scale),
                                            at(layout.inner_scale), at(layout.output_scale)});
  std::memcpy(at(layout.scales), &scales, sizeof(scales));
  return bytes;
}

// Copies the layers' scale lists to the host, in place of which `layers` then have them.
Status FetchScaleLists(const EncoderConfig& config, const LaunchContext& context,
                       std::vector<float>* lists, std::vector<LayerWeights>* layers) {
  cudaStreamCaptureStatus capturing;
  FT_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(context.stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) {
    return FailedPrecondition(
        "the weights of int8_mode and fp8_mode cannot be prepared while a CUDA graph is captured: "
        "run "
        "the model once before");
  }
  const int64_t size = ScaleListSize(config);
  lists->resize(layers->size() * size);
  for (size_t l = 0; l < layers->size(); ++l) {
    float* const list = lists->data() + l * size;
    FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(list, (*layers)[l].amax_list.data, size * 4,
                                            cudaMemcpyDefault, context.stream));
    (*layers)[l].amax_list.data = list;
  }
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(context.stream));
  return OkStatus();
}

// The scales and float32 biases of INT8 or FP8 of all layers, whose vectors have been moved.
Status PrepareScales(const EncoderConfig& config, const WeightLayout& layout,
                     std::vector<LayerWeights> layers, char* prepared,
                     const LaunchContext& context) {
  std::vector<float> lists;
  FT_RETURN_IF_ERROR(FetchScaleLists(config, context, &lists, &layers));
  std::vector<LayerRanges> ranges;
  FT_RETURN_IF_ERROR(ReadAllRanges(config, layers, &ranges));
  std::vector<std::vector<char>> scales;
  for (size_t l = 0; l < layers.size(); ++l) {
    char* const base = prepared + l * layout.layer_bytes;
    scales.push_back(MakeScales(config, layout, ranges[l]));
    FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(base + layout.qkv_scale, scales[l].data(),
                                            scales[l].size(), cudaMemcpyHostToDevice,
                                            context.stream));
    FT_RETURN_IF_ERROR(LaunchToFloat(config.dtype, base + layout.qkv_bias, 3 * config.hidden_size(),
                                     reinterpret_cast<float*>(base + layout.qkv_float_bias),
                                     context));
    FT_RETURN_IF_ERROR(LaunchToFloat(config.dtype, base + layout.inner_bias, config.inner_size,
                                     reinterpret_cast<float*>(base + layout.inner_float_bias),
                                     context));
  }
  // Until then the copies may read `scales`.
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(context.stream));
  return OkStatus();
}

}  // namespace

WeightLayout::WeightLayout(const EncoderConfig& config, bool splits) : has_split(splits) {
  const int64_t h = config.hidden_size(), i = config.inner_size;
  Arena arena(nullptr);
  const auto take = [&](int64_t elems, int64_t size) {
    const int64_t offset = arena.used();
    arena.Take(elems * size);
    return offset;
  };
  const int64_t size = SizeOf(config.dtype), matrix_size = SizeOf(config.matrix_dtype());
  qkv_kernel = take(3 * h * h, matrix_size);
  qkv_bias = take(3 * h, size);
  attention_kernel = take(h * h, matrix_size);
  attention_bias = take(h, size);
  attention_beta = take(h, size);
  attention_gamma = take(h, size);
  inner_kernel = take(h * i, matrix_size);
  inner_bias = take(i, size);
  output_kernel = take(i * h, matrix_size);
  output_bias = take(h, size);
  output_beta = take(h, size);
  output_gamma = take(h, size);
  const int64_t has_scales = config.is_quantized() ? 1 : 0;
  qkv_scale = take(has_scales * 3 * h, 4);
  attention_scale = take(has_scales * h, 4);
  inner_scale = take(has_scales * i, 4);
  output_scale = take(has_scales * h, 4);
  scales = take(has_scales, sizeof(LayerScales));
  qkv_float_bias = take(has_scales * 3 * h, 4);
  inner_float_bias = take(has_scales * i, 4);
  const auto take_split = [&](int64_t n, int64_t k) {
    const int64_t kernel = take(has_split ? n * SplitPitch(k) : 0, 4);
    return SplitWeight{kernel, take(has_split ? n : 0, 4)};
  };
  qkv_split = take_split(3 * h, h);
  attention_split = take_split(h, h);
  inner_split = take_split(i, h);
  output_split = take_split(h, i);
  layer_bytes = arena.used();
}

Status PrepareWeights(const EncoderConfig& config, const WeightLayout& layout,
                      const std::vector<LayerWeights>& layers, void* prepared,
                      const LaunchContext& context) {
  if (config.fp8_mode != 0 && context.compute_capability < 89) {
    return Unimplemented("fp8_mode is ", config.fp8_mode,
                         ", which takes compute capability 8.9 or later, but this GPU has ",
                         context.compute_capability / 10, ".", context.compute_capability % 10,
                         "; int8_mode takes the same weights");
  }
  char* const base = static_cast<char*>(prepared);
  for (size_t l = 0; l < layers.size(); ++l) {
    char* const layer = base + l * layout.layer_bytes;
    FT_RETURN_IF_ERROR(MoveWeights(config, layout, layers[l], layer, context));
    if (layout.has_split) {
      FT_RETURN_IF_ERROR(SplitMatrices(config, layout, layers[l], layer, context));
    }
  }
  return config.is_quantized() ? PrepareScales(config, layout, layers, base, context) : OkStatus();
}

}  // namespace cuda
}  // namespace ft
