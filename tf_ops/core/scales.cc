#include "tf_ops/core/scales.h"

#include <cmath>
#include <string>

namespace ft {
namespace {

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
  if (config.int8_mode == 0) return OkStatus();
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

}  // namespace ft
