// The ops of namespace fastertransformer on every device: arguments and tensors are converted here,
// the rest is core's Runner. fastertransformer_torch/ops.py documents them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "tf_ops/core/prepared_tensor.h"
#include "tf_ops/core/runner.h"
#include "torch_ops/call.h"
#include "torch_ops/convert.h"
#include "torch_ops/masks.h"
#include "torch_ops/prepared_cuda.h"
#ifdef FT_WITH_CUDA
#include "torch_ops/masks_cuda.h"
#endif

namespace ft::torch_op {
namespace {

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

  for (int64_t i = 0; i < count; ++i) {
    const char* const name = WeightFields()[i % kWeightsPerLayer].op_input;
    FT_RETURN_IF_ERROR(CheckDevice(name, weights[i], weights[0]));
  }
  Call call(weights[0]);
  FT_RETURN_IF_ERROR(call.Init(/*allow_tf32=*/false));
  std::vector<Tensor> dense;
  std::vector<LayerWeights> layers(config.num_layers);
  for (int64_t i = 0; i < count; ++i) {
    const WeightField& field = WeightFields()[i % kWeightsPerLayer];
    dense.push_back(Contiguous(weights[i]));
    FT_RETURN_IF_ERROR(
        ViewOf(field.op_input, dense.back(), &(layers[i / kWeightsPerLayer].*field.view)));
  }
  for (int64_t layer = 0; layer < num_lists; ++layer) {
    // Numbers that the host reads, which a GPU's preparation fetches from either.
    if (!amax_lists[layer].is_cpu()) {
      FT_RETURN_IF_ERROR(CheckDevice("amax_lists", amax_lists[layer], weights[0]));
    }
    dense.push_back(Contiguous(amax_lists[layer]));
    FT_RETURN_IF_ERROR(ViewOf("amax_lists", dense.back(), &layers[layer].amax_list));
  }
  std::shared_ptr<Runner> runner;
  FT_RETURN_IF_ERROR(call.GetRunner(config, &runner));
  std::shared_ptr<Encoder> encoder;
  FT_RETURN_IF_ERROR(runner->CheckWeights(layers, &encoder));
  const int64_t bytes =
      call.is_cuda() ? CudaPreparedBytes(*encoder) : PreparedTensorBytes(*encoder);
  *prepared = call.Empty({bytes}, ScalarType::Byte);
  void* const memory = prepared->mutable_data_ptr();
  if (!call.is_cuda()) return PrepareTensor(*encoder, layers, memory, memory, call.execution());
  return PrepareCudaTensor(*encoder, layers, memory, call.execution());
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
  bool allow_tf32;
};

// The weights in a prepared tensor, on the call's device.
Status Open(const Encoder& encoder, const TensorView& prepared, const Call& call,
            std::shared_ptr<const PreparedWeights>* weights) {
  if (!call.is_cuda()) return OpenPreparedTensor(encoder, prepared, prepared.data, weights);
  return OpenCudaPrepared(encoder, prepared, call.execution(), weights);
}

Status ReadAttentionOf(const TensorView& hidden_states,
                       const std::optional<Tensor>& sequence_length,
                       const std::optional<Tensor>& attention_mask, bool remove_padding, Call* call,
                       AttentionInputs* attention) {
#ifdef FT_WITH_CUDA
  if (call->is_cuda()) {
    return ReadCudaAttention(hidden_states, sequence_length, attention_mask, remove_padding,
                             call->execution(), attention);
  }
#endif
  return ReadAttention(hidden_states, sequence_length, attention_mask, call, attention);
}

Status Encode(const Tensor& given, const std::optional<Tensor>& sequence_length,
              const std::optional<Tensor>& attention_mask, const Tensor& prepared,
              const Attributes& attributes, std::vector<Tensor>* outputs) {
  FT_RETURN_IF_ERROR(CheckDevice("prepared", prepared, given));
  if (attention_mask.has_value()) {
    FT_RETURN_IF_ERROR(CheckDevice("attention_mask", *attention_mask, given));
  }
  if (sequence_length.has_value() && !sequence_length->is_cpu()) {
    FT_RETURN_IF_ERROR(CheckDevice("sequence_length", *sequence_length, given));
  }
  Call call(given);
  FT_RETURN_IF_ERROR(call.Init(attributes.allow_tf32));
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
  std::shared_ptr<Runner> runner;
  FT_RETURN_IF_ERROR(call.GetRunner(config, &runner));
  PreparedEncoder encoder;
  FT_RETURN_IF_ERROR(runner->GetEncoder(config.inner_size, &encoder.encoder));
  TensorView weights_view;
  FT_RETURN_IF_ERROR(ViewOf("prepared", weights, &weights_view));
  FT_RETURN_IF_ERROR(Open(*encoder.encoder, weights_view, call, &encoder.weights));
  AttentionInputs attention;
  FT_RETURN_IF_ERROR(ReadAttentionOf(inputs.hidden_states, sequence_length, attention_mask,
                                     attributes.remove_padding, &call, &attention));
  inputs.sequence_length = attention.sequence_length;
  inputs.attention_mask = attention.attention_mask;
  // Without lengths there is no padding.
  const bool has_lengths = sequence_length.has_value() || !attention.lengths.empty();
  inputs.remove_padding = attributes.remove_padding && has_lengths;
  EncoderPlan plan;
  FT_RETURN_IF_ERROR(PlanEncoder(config, inputs, &plan));
  std::vector<void*> addresses;
  for (int64_t i = 0; i < attributes.num_outputs; ++i) {
    outputs->push_back(call.Empty(hidden_states.sizes(), hidden_states.scalar_type()));
    addresses.push_back(outputs->back().mutable_data_ptr());
  }
  return runner->Run(encoder, inputs, plan, addresses, call.execution());
}

std::vector<Tensor> BertEncoder(const Tensor& hidden_states,
                                const std::optional<Tensor>& sequence_length,
                                const std::optional<Tensor>& attention_mask, const Tensor& prepared,
                                int64_t head_num, int64_t size_per_head, int64_t inner_size,
                                int64_t num_layers, int64_t num_outputs, bool remove_padding,
                                double layernorm_epsilon, const std::string& activation,
                                int64_t int8_mode, bool allow_tf32) {
  std::vector<Tensor> outputs;
  ThrowIfError(Encode(hidden_states, sequence_length, attention_mask, prepared,
                      {head_num, size_per_head, inner_size, num_layers, num_outputs, remove_padding,
                       layernorm_epsilon, activation, int8_mode, allow_tf32},
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
      "str activation=\"gelu_tanh\", int int8_mode=0, bool allow_tf32=False) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastertransformer, CPU, m) {
  m.impl("prepare_encoder", TORCH_BOX(&PrepareEncoder));
  m.impl("bert_encoder", TORCH_BOX(&BertEncoder));
}

// Without CUDA in the library the calls say so.
STABLE_TORCH_LIBRARY_IMPL(fastertransformer, CUDA, m) {
  m.impl("prepare_encoder", TORCH_BOX(&PrepareEncoder));
  m.impl("bert_encoder", TORCH_BOX(&BertEncoder));
}

}  // namespace ft::torch_op
