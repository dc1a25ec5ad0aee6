// The ops of namespace fastertransformer on the CPU: arguments and tensors are converted here, the
// rest is core's Runner. fastertransformer_torch/ops.py documents them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "tf_ops/core/prepared_tensor.h"
#include "tf_ops/core/runner.h"
#include "tf_ops/cpu/backend.h"
#include "torch_ops/call.h"
#include "torch_ops/convert.h"
#include "torch_ops/masks.h"

namespace ft::torch_op {
namespace {

// The CPU's encoders keep nothing from call to call, and modules keep the prepared weights.
Runner MakeRunner(const EncoderConfig& config) {
  static const auto* const caches = new std::shared_ptr<DeviceCaches>(new DeviceCaches(0));
  return Runner(config, {}, &cpu::CpuBackend(), *caches);
}

Status Prepare(const std::vector<Tensor>& weights, const std::vector<Tensor>& amax_lists,
               int64_t head_num, int64_t size_per_head, int64_t int8_mode, Tensor* prepared) {
  const int64_t count = static_cast<int64_t>(weights.size());
  if (count == 0 || count % kWeightsPerLayer != 0) {
    return InvalidArgument("weights has ", count, " tensors, expected ", kWeightsPerLayer,
                           " for each layer");
  }
  EncoderConfig config;
  config.num_heads = head_num;
  config.head_size = size_per_head;
  config.num_layers = count / kWeightsPerLayer;
  FT_RETURN_IF_ERROR(ValidateAttributes(config));
  FT_RETURN_IF_ERROR(ParseInt8Mode(int8_mode, &config.int8_mode));
  const int64_t num_lists = static_cast<int64_t>(amax_lists.size());
  const int64_t expected = int8_mode == 0 ? 0 : config.num_layers;
  if (num_lists != expected) {
    return InvalidArgument("amax_lists has ", num_lists, " tensors, expected ", expected,
                           " with int8_mode ", int8_mode);
  }
  // A bias: the kernel before it may be int8.
  FT_RETURN_IF_ERROR(ToDataType(WeightFields()[1].op_input, weights[1], &config.dtype));

  std::vector<Tensor> dense;
  std::vector<LayerWeights> layers(config.num_layers);
  for (int64_t i = 0; i < count; ++i) {
    const WeightField& field = WeightFields()[i % kWeightsPerLayer];
    dense.push_back(Contiguous(weights[i]));
    FT_RETURN_IF_ERROR(
        ViewOf(field.op_input, dense.back(), &(layers[i / kWeightsPerLayer].*field.view)));
  }
  for (int64_t layer = 0; layer < num_lists; ++layer) {
    dense.push_back(Contiguous(amax_lists[layer]));
    FT_RETURN_IF_ERROR(ViewOf("amax_lists", dense.back(), &layers[layer].amax_list));
  }
  Runner runner = MakeRunner(config);
  std::shared_ptr<Encoder> encoder;
  FT_RETURN_IF_ERROR(runner.CheckWeights(layers, &encoder));
  *prepared = ::torch::stable::empty({PreparedTensorBytes(*encoder)}, ScalarType::Byte);
  const Call call;
  return PrepareTensor(*encoder, layers, prepared->mutable_data_ptr(), call.execution());
}

Tensor PrepareEncoder(const std::vector<Tensor>& weights, const std::vector<Tensor>& amax_lists,
                      int64_t head_num, int64_t size_per_head, int64_t int8_mode) {
  Tensor prepared;
  ThrowIfError(Prepare(weights, amax_lists, head_num, size_per_head, int8_mode, &prepared));
  return prepared;
}

// What the op says about the model beside its weights.
struct Attributes {
  int64_t head_num, size_per_head, inner_size, num_layers, num_outputs;
  bool remove_padding;
  double layernorm_epsilon;
  const std::string& activation;
  int64_t int8_mode;
};

Status Encode(const Tensor& given, const std::optional<Tensor>& sequence_length,
              const std::optional<Tensor>& attention_mask, const Tensor& prepared,
              const Attributes& attributes, std::vector<Tensor>* outputs) {
  const Tensor hidden_states = Contiguous(given), weights = Contiguous(prepared);
  EncoderInputs inputs;
  FT_RETURN_IF_ERROR(ViewOf("hidden_states", hidden_states, &inputs.hidden_states));
  if (inputs.hidden_states.shape.size() != 3) {
    return InvalidArgument("hidden_states has shape ", ShapeString(inputs.hidden_states.shape),
                           ", expected [B,S,H]");
  }
  EncoderConfig config;
  config.dtype = inputs.hidden_states.dtype;
  config.num_heads = attributes.head_num;
  config.head_size = attributes.size_per_head;
  config.inner_size = attributes.inner_size;
  config.num_layers = attributes.num_layers;
  config.layernorm_epsilon = static_cast<float>(attributes.layernorm_epsilon);
  FT_RETURN_IF_ERROR(ParseActivation(attributes.activation, &config.activation));
  FT_RETURN_IF_ERROR(ParseInt8Mode(attributes.int8_mode, &config.int8_mode));
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  FT_RETURN_IF_ERROR(ValidateNumOutputs(config, attributes.num_outputs));
  Runner runner = MakeRunner(config);
  PreparedEncoder encoder;
  FT_RETURN_IF_ERROR(runner.GetEncoder(config.inner_size, &encoder.encoder));
  TensorView weights_view;
  FT_RETURN_IF_ERROR(ViewOf("prepared", weights, &weights_view));
  FT_RETURN_IF_ERROR(OpenPreparedTensor(*encoder.encoder, weights_view, &encoder.weights));

  Call call;
  AttentionInputs attention;
  FT_RETURN_IF_ERROR(
      ReadAttention(inputs.hidden_states, sequence_length, attention_mask, &call, &attention));
  inputs.sequence_length = attention.sequence_length;
  inputs.attention_mask = attention.attention_mask;
  // Without lengths there is no padding.
  const bool has_lengths = sequence_length.has_value() || !attention.lengths.empty();
  inputs.remove_padding = attributes.remove_padding && has_lengths;
  EncoderPlan plan;
  FT_RETURN_IF_ERROR(PlanEncoder(config, inputs, &plan));
  std::vector<void*> addresses;
  for (int64_t i = 0; i < attributes.num_outputs; ++i) {
    outputs->push_back(::torch::stable::empty(hidden_states.sizes(), hidden_states.scalar_type()));
    addresses.push_back(outputs->back().mutable_data_ptr());
  }
  return runner.Run(encoder, inputs, plan, addresses, call.execution());
}

std::vector<Tensor> BertEncoder(const Tensor& hidden_states,
                                const std::optional<Tensor>& sequence_length,
                                const std::optional<Tensor>& attention_mask, const Tensor& prepared,
                                int64_t head_num, int64_t size_per_head, int64_t inner_size,
                                int64_t num_layers, int64_t num_outputs, bool remove_padding,
                                double layernorm_epsilon, const std::string& activation,
                                int64_t int8_mode) {
  std::vector<Tensor> outputs;
  ThrowIfError(Encode(hidden_states, sequence_length, attention_mask, prepared,
                      {head_num, size_per_head, inner_size, num_layers, num_outputs, remove_padding,
                       layernorm_epsilon, activation, int8_mode},
                      &outputs));
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY(fastertransformer, m) {
  m.def(
      "prepare_encoder(Tensor[] weights, Tensor[] amax_lists, int head_num, int size_per_head, "
      "int int8_mode=0) -> Tensor");
  m.def(
      "bert_encoder(Tensor hidden_states, Tensor? sequence_length, Tensor? attention_mask, "
      "Tensor prepared, int head_num, int size_per_head, int inner_size, int num_layers, "
      "int num_outputs=1, bool remove_padding=True, float layernorm_epsilon=1e-12, "
      "str activation=\"gelu_tanh\", int int8_mode=0) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastertransformer, CPU, m) {
  m.impl("prepare_encoder", TORCH_BOX(&PrepareEncoder));
  m.impl("bert_encoder", TORCH_BOX(&BertEncoder));
}

}  // namespace ft::torch_op
