#include "tf_ops/core/weights.h"

#include <string>

#include "tf_ops/core/scales.h"

namespace ft {
namespace {

constexpr WeightField kFields[kWeightsPerLayer] = {
    {"attr_q_kernel", &LayerWeights::query_kernel, "HH", true},
    {"attr_q_bias", &LayerWeights::query_bias, "H", false},
    {"attr_k_kernel", &LayerWeights::key_kernel, "HH", true},
    {"attr_k_bias", &LayerWeights::key_bias, "H", false},
    {"attr_v_kernel", &LayerWeights::value_kernel, "HH", true},
    {"attr_v_bias", &LayerWeights::value_bias, "H", false},
    {"attr_output_kernel", &LayerWeights::attention_output_kernel, "HH", true},
    {"attr_output_bias", &LayerWeights::attention_output_bias, "H", false},
    {"attr_output_layernorm_beta", &LayerWeights::attention_layernorm_beta, "H", false},
    {"attr_output_layernorm_gamma", &LayerWeights::attention_layernorm_gamma, "H", false},
    {"inter_kernel", &LayerWeights::intermediate_kernel, "HI", true},
    {"inter_bias", &LayerWeights::intermediate_bias, "I", false},
    {"output_kernel", &LayerWeights::output_kernel, "IH", true},
    {"output_bias", &LayerWeights::output_bias, "H", false},
    {"output_layernorm_beta", &LayerWeights::output_layernorm_beta, "H", false},
    {"output_layernorm_gamma", &LayerWeights::output_layernorm_gamma, "H", false},
};

}  // namespace

const WeightField* WeightFields() { return kFields; }

Shape WeightShape(const EncoderConfig& config, int field) {
  Shape shape;
  for (const char* letter = kFields[field].shape; *letter != 0; ++letter) {
    shape.push_back(*letter == 'I' ? config.inner_size : config.hidden_size());
  }
  return shape;
}

Status ValidateWeights(const EncoderConfig& config, const std::vector<LayerWeights>& layers) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  if (layers.size() != static_cast<size_t>(config.num_layers)) {
    return InvalidArgument("weights are given for ", layers.size(), " layers, expected ",
                           config.num_layers);
  }
  std::string faults;
  const auto check = [&](const char* name, size_t layer, const TensorView& view, DataType dtype,
                         const Shape& shape) {
    const std::string full = config.num_layers == 1 ? name : StrCat(name, "[", layer, "]");
    const auto add = [&](const std::string& fault) {
      faults += StrCat(faults.empty() ? "" : "; ", full, " ", fault);
    };
    if (view.dtype != dtype) {
      add(StrCat("has dtype ", Name(view.dtype), ", expected ", Name(dtype)));
    }
    if (view.shape != shape) {
      add(StrCat("has shape ", ShapeString(view.shape), ", expected ", ShapeString(shape)));
    } else if (view.data == nullptr) {
      add("is null");
    }
  };
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (int i = 0; i < kWeightsPerLayer; ++i) {
      check(kFields[i].op_input, layer, layers[layer].*kFields[i].view,
            kFields[i].is_quantized ? config.matrix_dtype() : config.dtype, WeightShape(config, i));
    }
    if (config.is_quantized()) {
      check("amax_list", layer, layers[layer].amax_list, DataType::kFloat32,
            {ScaleListSize(config)});
    }
  }
  if (faults.empty()) return OkStatus();
  return InvalidArgument(faults, " (head_num ", config.num_heads, ", size_per_head ",
                         config.head_size, ")");
}

}  // namespace ft
