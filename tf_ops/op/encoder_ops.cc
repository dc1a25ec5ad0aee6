// BertTransformer and BertEncoder, on every device: attributes and tensors are converted here, the
// rest is core's Runner.
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/runner.h"
#include "tf_ops/op/call.h"
#include "tf_ops/op/convert.h"
#include "tf_ops/op/registration.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

class TensorHold final : public WeightHold {
 public:
  explicit TensorHold(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {}
  bool IsLastOwner() const override {
    for (const Tensor& tensor : tensors_) {
      if (tensor.RefCountIsOne()) return true;
    }
    return false;
  }

 private:
  const std::vector<Tensor> tensors_;  // copies share their buffers
};

// The part of both ops that is not about their inputs.
class EncoderKernel : public OpKernel {
 public:
  explicit EncoderKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    int64_t int8_mode, fp8_mode;
    std::string activation;
    tensorflow::DataType type, matrix_type;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("T", &type));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("W", &matrix_type));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("head_num", &config_.num_heads));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("size_per_head", &config_.head_size));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("layernorm_epsilon", &config_.layernorm_epsilon));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("activation", &activation));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("remove_padding", &remove_padding_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("cache_weights", &cache_weights_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("allow_gemm_test", &options_.allow_gemm_test));
    // A model may come from anybody: whoever runs the process says whether files are read and
    // written and whether calls may take the seconds that tuning takes.
    options_.gemm_config_dir = Environment("FT_GEMM_CONFIG_DIR");
    if (options_.allow_gemm_test && Environment("FT_ALLOW_GEMM_TEST") != "1") {
      options_.allow_gemm_test = false;
      static std::once_flag reported;
      std::call_once(reported, [] {
        LOG(WARNING) << "a model asks for allow_gemm_test, which is ignored unless the environment "
                        "has FT_ALLOW_GEMM_TEST=1";
      });
    }
    OP_REQUIRES_OK(ctx, ctx->GetAttr("int8_mode", &int8_mode));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("fp8_mode", &fp8_mode));
    OP_REQUIRES_OK(ctx, ToAbsl(ParseInt8Mode(int8_mode, &config_.int8_mode)));
    OP_REQUIRES_OK(ctx, ToAbsl(ParseFp8Mode(fp8_mode, config_.int8_mode, &config_.fp8_mode)));
    OP_REQUIRES_OK(ctx, ToAbsl(ToDataType(type, &config_.dtype)));
    const tensorflow::DataType expected = config_.is_quantized() ? tensorflow::DT_INT8 : type;
    OP_REQUIRES(ctx, matrix_type == expected,
                absl::InvalidArgumentError(StrCat(
                    "the weight matrices are ", tensorflow::DataTypeString(matrix_type),
                    ", expected ", tensorflow::DataTypeString(expected), " with ", ModeString())));
    OP_REQUIRES_OK(ctx, ToAbsl(ValidateAttributes(config_)));
    OP_REQUIRES_OK(ctx, ToAbsl(ParseActivation(activation, &config_.activation)));
  }

  void Compute(OpKernelContext* ctx) final {
    RunGuarded(ctx, [&]() -> Status {
      Call call(ctx);
      FT_RETURN_IF_ERROR(call.Init());
      FT_RETURN_IF_ERROR(MakeRunner(call));
      return ComputeOn(call, ctx);
    });
  }

 protected:
  virtual Status ComputeOn(const Call& call, OpKernelContext* ctx) = 0;

  // The op's input that is field `field` of WeightFields() of layer `layer`.
  virtual int WeightInput(int layer, int field) const = 0;
  // The input that is the scale list of layer `layer`.
  virtual int ScaleListInput(int layer) const = 0;

  Status PrepareWeights(const Call& call, OpKernelContext* ctx, PreparedEncoder* prepared) {
    WeightInputs weights;
    weights.layers.resize(config_.num_layers);
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      for (int field = 0; field < kWeightsPerLayer; ++field) {
        weights.layers[layer].*WeightFields()[field].view =
            ViewOf(ctx->input(WeightInput(layer, field)));
      }
      if (config_.is_quantized()) {
        weights.layers[layer].amax_list = ViewOf(ctx->input(ScaleListInput(layer)));
      }
    }
    if (cache_weights_) {
      weights.hold = [&] {
        std::vector<Tensor> tensors;
        for (int layer = 0; layer < config_.num_layers; ++layer) {
          for (int field = 0; field < kWeightsPerLayer; ++field) {
            tensors.push_back(ctx->input(WeightInput(layer, field)));
          }
          if (config_.is_quantized()) tensors.push_back(ctx->input(ScaleListInput(layer)));
        }
        return std::make_unique<TensorHold>(std::move(tensors));
      };
    }
    return runner_->Prepare(weights, call.execution(), prepared);
  }

  // For messages.
  std::string ModeString() const {
    return config_.fp8_mode != 0 ? StrCat("fp8_mode ", config_.fp8_mode)
                                 : StrCat("int8_mode ", config_.int8_mode);
  }

  EncoderConfig config_;  // inner_size comes from the weights
  bool remove_padding_ = false;
  std::unique_ptr<Runner> runner_;  // from the first call on

 private:
  Status MakeRunner(const Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (runner_ != nullptr) return OkStatus();
    std::shared_ptr<DeviceCaches> caches;
    FT_RETURN_IF_ERROR(call.GetCaches(&caches));
    runner_ = std::make_unique<Runner>(config_, options_, &call.backend(), std::move(caches));
    return OkStatus();
  }

  EncoderOptions options_;
  bool cache_weights_ = true;
  std::mutex mutex_;
};

class BertTransformerKernel final : public EncoderKernel {
 public:
  explicit BertTransformerKernel(OpKernelConstruction* ctx) : EncoderKernel(ctx) {
    int64_t layer_idx, layer_num;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("layer_idx", &layer_idx));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("layer_num", &layer_num));
    OP_REQUIRES(
        ctx, layer_idx >= 0 && layer_idx < layer_num,
        absl::InvalidArgumentError(
            StrCat("layer_idx is ", layer_idx, ", expected 0 to layer_num - 1 = ", layer_num - 1)));
    config_.has_last_layer = layer_idx + 1 == layer_num;
  }

 protected:
  Status ComputeOn(const Call& call, OpKernelContext* ctx) override {
    LayerInputs inputs;
    inputs.from_tensor = ViewOf(ctx->input(0));
    inputs.to_tensor = ViewOf(ctx->input(1));
    inputs.attention_mask = ViewOf(ctx->input(kMask));
    inputs.sequence_id_offset = ViewOf(ctx->input(kIdOffset));
    inputs.seqlen_offset = ViewOf(ctx->input(kSeqlenOffset));
    inputs.remove_padding = remove_padding_;
    LayerPlan plan;
    FT_RETURN_IF_ERROR(PlanLayer(config_, inputs, &plan));
    PreparedEncoder prepared;
    FT_RETURN_IF_ERROR(PrepareWeights(call, ctx, &prepared));
    Tensor* output;
    FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(0, ctx->input(0).shape(), &output)));
    return runner_->Run(prepared, inputs, plan, output->data(), call.execution());
  }

 private:
  // Inputs; the weights are 2 to 18 without the mask.
  static constexpr int kWeights = 2, kMask = 8, kIdOffset = 19, kScaleList = 20, kSeqlenOffset = 21;

  int WeightInput(int, int field) const override {
    return kWeights + field + (kWeights + field >= kMask ? 1 : 0);
  }
  int ScaleListInput(int) const override { return kScaleList; }
};

class BertEncoderKernel final : public EncoderKernel {
 public:
  explicit BertEncoderKernel(OpKernelConstruction* ctx) : EncoderKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_layers", &config_.num_layers));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_outputs", &num_outputs_));
    OP_REQUIRES_OK(ctx, ToAbsl(ValidateNumOutputs(config_, num_outputs_)));
    int64_t num_amax_lists;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_amax_lists", &num_amax_lists));
    const int64_t expected = config_.is_quantized() ? config_.num_layers : 0;
    OP_REQUIRES(
        ctx, num_amax_lists == expected,
        absl::InvalidArgumentError(StrCat("num_amax_lists is ", num_amax_lists, ", expected ",
                                          expected, " with ", ModeString())));
  }

 protected:
  Status ComputeOn(const Call& call, OpKernelContext* ctx) override {
    EncoderInputs inputs;
    inputs.hidden_states = ViewOf(ctx->input(0));
    inputs.sequence_length = ViewOf(ctx->input(1));
    inputs.attention_mask = ViewOf(ctx->input(2));
    inputs.remove_padding = remove_padding_;
    EncoderPlan plan;
    FT_RETURN_IF_ERROR(PlanEncoder(config_, inputs, &plan));
    PreparedEncoder prepared;
    FT_RETURN_IF_ERROR(PrepareWeights(call, ctx, &prepared));
    std::vector<void*> outputs;
    for (int i = 0; i < num_outputs_; ++i) {
      Tensor* output;
      FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(i, ctx->input(0).shape(), &output)));
      outputs.push_back(output->data());
    }
    return runner_->Run(prepared, inputs, plan, outputs, call.execution());
  }

 private:
  // Inputs; the weights come field by field, each for all layers.
  static constexpr int kWeights = 3;

  int WeightInput(int layer, int field) const override {
    return kWeights + field * static_cast<int>(config_.num_layers) + layer;
  }
  int ScaleListInput(int layer) const override { return WeightInput(layer, kWeightsPerLayer); }

  int num_outputs_ = 0;
};

#define FT_REGISTER_CPU(T)                                                             \
  REGISTER_KERNEL_BUILDER(                                                             \
      Name("BertTransformer").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      BertTransformerKernel);                                                          \
  REGISTER_KERNEL_BUILDER(                                                             \
      Name("BertEncoder").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),     \
      BertEncoderKernel)
// Integers stay on the host: they are checked there, and tell the number of tokens without waiting
// for the GPU.
#define FT_REGISTER_GPU(T)                                      \
  REGISTER_KERNEL_BUILDER(Name("BertTransformer")               \
                              .Device(::tensorflow::DEVICE_GPU) \
                              .HostMemory("sequence_id_offset") \
                              .HostMemory("trt_seqlen_offset")  \
                              .TypeConstraint<T>("T"),          \
                          BertTransformerKernel);               \
  REGISTER_KERNEL_BUILDER(Name("BertEncoder")                   \
                              .Device(::tensorflow::DEVICE_GPU) \
                              .HostMemory("sequence_length")    \
                              .TypeConstraint<T>("T"),          \
                          BertEncoderKernel)
FT_REGISTER_ALL_TYPES;

}  // namespace
}  // namespace ft::op
