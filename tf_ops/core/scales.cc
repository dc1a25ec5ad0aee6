#include "tf_ops/core/scales.h"

#include <cmath>
#include <string>

namespace ft {
namespace {

constexpr float kLargestFloat8 = 448.0f;
constexpr int64_t kActivationFloats = 80, kSlotFloats = 4, kUnreadFloats = 8 + 3;

// Reads the ranges of one layer.
Status ReadRanges(const EncoderConfig& config, size_t layer, const float* list,
                  LayerRanges* ranges) {
  std::string faults;
  int num_faults = 0;
  const auto check = [&](int64_t at) {
    if (std::isfinite(list[at]) && list[at] > 0.0f) return;
    constexpr int kMaxListed = 8;
    if (++num_faults <= kMaxListed) {
      faults += StrCat(faults.empty() ? "" : ", ", "float ", at, " is ", list[at]);
    }
  };
  const struct {
    int slot;
    float* range;
    bool is_read;
  } slots[] = {{0, &ranges->input, true},
               {9, &ranges->context, true},
               {10, &ranges->projection, config.quantizes_residuals()},
               {11, &ranges->attention_norm, true},
               {13, &ranges->inner, true},
               {14, &ranges->output_product, config.quantizes_residuals()},
               {15, &ranges->output, config.quantizes_residuals()}};
  for (const auto& slot : slots) {
    if (slot.is_read) check(slot.slot * kSlotFloats);
    *slot.range = list[slot.slot * kSlotFloats];
  }
  const int64_t hidden = config.hidden_size();
  const struct {
    int64_t columns;
    const float** range;
  } kernels[] = {{hidden, &ranges->query},
                 {hidden, &ranges->key},
                 {hidden, &ranges->value},
                 {hidden, &ranges->attention_output},
                 {config.inner_size, &ranges->intermediate},
                 {hidden, &ranges->output_kernel}};
  int64_t at = kActivationFloats;
  for (const auto& kernel : kernels) {
    *kernel.range = list + at;
    for (int64_t column = 0; column < kernel.columns; ++column) check(at + column);
    at += kernel.columns;
  }
  if (num_faults == 0) return OkStatus();
  return InvalidArgument("amax_list[", layer, "] has ", num_faults,
                         " ranges that are not finite and positive: ", faults);
}

}  // namespace

int64_t ScaleListSize(const EncoderConfig& config) {
  return kActivationFloats + 5 * config.hidden_size() + config.inner_size + kUnreadFloats;
}

Status ReadAllRanges(const EncoderConfig& config, const std::vector<LayerWeights>& layers,
                     std::vector<LayerRanges>* ranges) {
  ranges->clear();
  if (!config.is_quantized()) return OkStatus();
  for (size_t l = 0; l < layers.size(); ++l) {
    ranges->emplace_back();
    FT_RETURN_IF_ERROR(ReadRanges(config, l, static_cast<const float*>(layers[l].amax_list.data),
                                  &ranges->back()));
    if (l == 0 || !config.quantizes_residuals()) continue;
    const float output = (*ranges)[l - 1].output, input = (*ranges)[l].input;
    if (output != input) {
      return InvalidArgument("amax_list[", l - 1, "] ends with the range ", output,
                             " (float 60), expected that of amax_list[", l, "]'s input, ", input,
                             " (float 0): they are one tensor's");
    }
  }
  return OkStatus();
}

LayerScales ComputeScales(const EncoderConfig& config, const LayerRanges& ranges,
                          const ProductScales& products) {
  constexpr float kWeightBound = 127.0f;
  const float bound = config.fp8_mode != 0 ? kLargestFloat8 : 127.0f;  // of activations
  const auto fill = [bound](float in, const float* columns, float rounded, int64_t count,
                            float* scale) {
    // Sums stand for their products' unit; mode 2 divides it by that of the rounding.
    const float divisor = rounded > 0.0f ? kWeightBound * rounded : bound * kWeightBound;
    for (int64_t i = 0; i < count; ++i) scale[i] = in * columns[i] / divisor;
  };
  const int64_t hidden = config.hidden_size();
  const bool rounds = config.quantizes_residuals();
  fill(ranges.input, ranges.query, 0.0f, hidden, products.qkv);
  fill(ranges.input, ranges.key, 0.0f, hidden, products.qkv + hidden);
  fill(ranges.input, ranges.value, 0.0f, hidden, products.qkv + 2 * hidden);
  fill(ranges.context, ranges.attention_output, rounds ? ranges.projection : 0.0f, hidden,
       products.projection);
  fill(ranges.attention_norm, ranges.intermediate, 0.0f, config.inner_size, products.intermediate);
  fill(ranges.inner, ranges.output_kernel, rounds ? ranges.output_product : 0.0f, hidden,
       products.output);
  LayerScales s = {};
  s.input_scale = bound / ranges.input;
  s.input_unit = ranges.input / bound;
  s.context_scale = bound / ranges.context;
  s.norm_scale = bound / ranges.attention_norm;
  s.norm_unit = ranges.attention_norm / bound;
  s.inner_scale = bound / ranges.inner;
  if (!rounds) return s;
  s.projection_unit = ranges.projection / bound;
  s.product_unit = ranges.output_product / bound;
  s.output_scale = bound / ranges.output;
  s.output_unit = ranges.output / bound;
  return s;
}

}  // namespace ft
