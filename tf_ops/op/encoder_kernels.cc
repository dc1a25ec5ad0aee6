// BertTransformer and BertEncoder, on every device. Every input is checked before memory is taken.
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/weights.h"
#include "tf_ops/op/device.h"
#include "tf_ops/op/op_utils.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;

// Weights that an encoder can run with. Keeps the tensors that they were made from, so that an
// address that is looked for in the cache cannot have been given to other weights.
struct PreparedWeights {
  std::shared_ptr<Encoder> encoder;
  std::vector<Tensor> sources;  // layer by layer, in the order of WeightFields(); shared buffers
  Tensor memory;
  void* packed = nullptr;
};

// The part of both ops that is not about their inputs: encoders, packed weights, running.
class EncoderKernel : public OpKernel {
 public:
  explicit EncoderKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    int64_t int8_mode;
    std::string activation;
    tensorflow::DataType type;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("T", &type));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("head_num", &config_.num_heads));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("size_per_head", &config_.head_size));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("layernorm_epsilon", &config_.layernorm_epsilon));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("activation", &activation));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("remove_padding", &remove_padding_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("is_weight_const", &is_weight_const_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("allow_gemm_test", &allow_gemm_test_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("int8_mode", &int8_mode));
    OP_REQUIRES(ctx, int8_mode == 0,
                absl::UnimplementedError(
                    StrCat("int8_mode is ", int8_mode, ", not in this version: expected 0")));
    OP_REQUIRES_OK(ctx, ToAbsl(ToDataType(type, &config_.dtype)));
    // Keeps H * H well inside int64.
    constexpr int64_t kMaxSize = 1 << 20;
    OP_REQUIRES(ctx, config_.num_heads <= kMaxSize && config_.head_size <= kMaxSize,
                absl::InvalidArgumentError(StrCat("head_num and size_per_head are ",
                                                  config_.num_heads, " and ", config_.head_size,
                                                  ", expected at most ", kMaxSize, " each")));
    OP_REQUIRES(
        ctx, config_.layernorm_epsilon >= 0.0f,
        absl::InvalidArgumentError(StrCat("layernorm_epsilon is ", config_.layernorm_epsilon,
                                          ", expected a number >= 0")));
    config_.activation = activation == "gelu_erf" ? Activation::kGeluErf
                         : activation == "relu"   ? Activation::kRelu
                                                  : Activation::kGeluTanh;
  }

  void Compute(OpKernelContext* ctx) final {
    RunGuarded(ctx, [&]() -> Status {
      std::unique_ptr<Device> device;
      FT_RETURN_IF_ERROR(MakeDevice(ctx, &device));
      return ComputeOn(*device, ctx);
    });
  }

 protected:
  virtual Status ComputeOn(const Device& device, OpKernelContext* ctx) = 0;

  // The op's input that is field `field` of WeightFields() of layer `layer`.
  virtual int WeightInput(int layer, int field) const = 0;

  // Checks and packs the op's weights. Constant ones are checked and packed at their first call.
  Status PrepareWeights(const Device& device, OpKernelContext* ctx,
                        std::shared_ptr<const PreparedWeights>* prepared) {
    if (!is_weight_const_) return Prepare(device, ctx, prepared);
    // Held while packing: a second thread with the same weights waits instead of packing again.
    std::lock_guard<std::mutex> lock(cache_mutex_);
    for (auto entry = cache_.begin(); entry != cache_.end(); ++entry) {
      if (!IsMadeFrom(**entry, ctx)) continue;
      cache_.splice(cache_.begin(), cache_, entry);
      *prepared = *entry;
      return OkStatus();
    }
    FT_RETURN_IF_ERROR(Prepare(device, ctx, prepared));
    cache_.push_front(*prepared);
    if (cache_.size() > kMaxCached) cache_.pop_back();
    return OkStatus();
  }

  Status RunEncoder(const Device& device, OpKernelContext* ctx, const PreparedWeights& weights,
                    const EncoderBatch& batch) const {
    Tensor memory;
    void* workspace;
    FT_RETURN_IF_ERROR(AllocateBytes(
        ctx, weights.encoder->WorkspaceBytes(batch, device.execution()), &memory, &workspace));
    device.LogPlan(weights.encoder->config(), batch);
    return weights.encoder->Run(batch, weights.packed, workspace, device.execution());
  }

  int64_t row_bytes() const { return config_.hidden_size() * SizeOf(config_.dtype); }

  EncoderConfig config_;  // inner_size comes from the weights
  bool remove_padding_ = false;

 private:
  static constexpr size_t kMaxCached = 64;

  bool IsMadeFrom(const PreparedWeights& prepared, OpKernelContext* ctx) const {
    const Tensor* source = prepared.sources.data();
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      for (int field = 0; field < kWeightsPerLayer; ++field, ++source) {
        const Tensor& input = ctx->input(WeightInput(layer, field));
        if (input.data() != source->data() || input.shape() != source->shape()) return false;
      }
    }
    return true;
  }

  Status Prepare(const Device& device, OpKernelContext* ctx,
                 std::shared_ptr<const PreparedWeights>* prepared) {
    auto made = std::make_shared<PreparedWeights>();
    std::vector<LayerWeights> layers(config_.num_layers);
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      for (int field = 0; field < kWeightsPerLayer; ++field) {
        made->sources.push_back(ctx->input(WeightInput(layer, field)));
        layers[layer].*WeightFields()[field].view = ViewOf(made->sources.back());
      }
    }
    FT_RETURN_IF_ERROR(GetEncoder(device, layers, &made->encoder));
    FT_RETURN_IF_ERROR(
        AllocateBytes(ctx, made->encoder->PackedWeightBytes(), &made->memory, &made->packed));
    FT_RETURN_IF_ERROR(made->encoder->PackWeights(layers, made->packed, device.execution()));
    *prepared = std::move(made);
    return OkStatus();
  }

  // Checks all weights and returns the encoder for their inner size.
  Status GetEncoder(const Device& device, const std::vector<LayerWeights>& layers,
                    std::shared_ptr<Encoder>* encoder) {
    const TensorView& inter_kernel = layers[0].intermediate_kernel;
    EncoderConfig config = config_;
    if (inter_kernel.shape.size() != 2 || inter_kernel.shape[1] < 1) {
      return InvalidArgument("inter_kernel has shape ", ShapeString(inter_kernel.shape),
                             ", expected [", config.hidden_size(), ",I] with I at least 1");
    }
    config.inner_size = inter_kernel.shape[1];
    FT_RETURN_IF_ERROR(ValidateWeights(config, layers));
    std::lock_guard<std::mutex> lock(encoders_mutex_);
    auto found = encoders_.find(config.inner_size);
    if (found == encoders_.end()) {
      std::unique_ptr<Encoder> created;
      FT_RETURN_IF_ERROR(device.CreateEncoder(config, allow_gemm_test_, &created));
      if (encoders_.size() >= kMaxCached) encoders_.clear();
      found = encoders_.emplace(config.inner_size, std::move(created)).first;
    }
    *encoder = found->second;
    return OkStatus();
  }

  bool is_weight_const_ = false, allow_gemm_test_ = false;
  std::mutex encoders_mutex_;
  std::map<int64_t, std::shared_ptr<Encoder>> encoders_;  // by inner size
  std::mutex cache_mutex_;
  std::list<std::shared_ptr<const PreparedWeights>> cache_;  // the most recently used first
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
  }

 protected:
  Status ComputeOn(const Device& device, OpKernelContext* ctx) override {
    const Tensor& from = ctx->input(0);
    const Tensor& to = ctx->input(1);
    const Tensor& mask = ctx->input(kMask);
    const int64_t hidden = config_.hidden_size();
    if ((from.dims() != 2 && from.dims() != 3) || from.dim_size(from.dims() - 1) != hidden) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from), ", expected [B,S,", hidden,
                             "], [B*S,", hidden, "] or, without padding, [T,", hidden,
                             "]; the last is head_num * size_per_head");
    }
    if (to.shape() != from.shape()) {
      return InvalidArgument("to_tensor has shape ", ShapeOf(to), ", expected from_tensor's, ",
                             ShapeOf(from));
    }
    int64_t batch_size, seq_len;
    FT_RETURN_IF_ERROR(MaskSizes("attr_mask", mask, &batch_size, &seq_len));
    FT_RETURN_IF_ERROR(CheckTokens("attr_mask", mask, batch_size, seq_len));
    EncoderBatch batch;
    batch.batch_size = batch_size;
    batch.max_seq_len = seq_len;
    batch.packed = remove_padding_;
    FT_RETURN_IF_ERROR(remove_padding_ ? CheckPacked(ctx, &batch) : CheckPadded(ctx, &batch));
    batch.attention_mask = mask.data();

    std::shared_ptr<const PreparedWeights> weights;
    FT_RETURN_IF_ERROR(PrepareWeights(device, ctx, &weights));

    Tensor* output;
    FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(0, from.shape(), &output)));
    if (batch.num_tokens == 0) return OkStatus();
    batch.input = from.data();
    batch.outputs = {output->data()};
    Tensor offsets;
    if (remove_padding_) {
      FT_RETURN_IF_ERROR(device.ToDevice(ctx->input(kSeqlenOffset).flat<int32_t>().data(),
                                         batch_size + 1, &offsets, &batch.seq_offsets));
    }
    return RunEncoder(device, ctx, *weights, batch);
  }

 private:
  // Inputs; the weights are 2 to 18 without the mask.
  static constexpr int kWeights = 2, kMask = 8, kIdOffset = 19, kSeqlenOffset = 21;

  int WeightInput(int, int field) const override {
    return kWeights + field + (kWeights + field >= kMask ? 1 : 0);
  }

  // from_tensor's rows are those of the padded layout; the mask alone decides about attention.
  Status CheckPadded(OpKernelContext* ctx, EncoderBatch* batch) const {
    const Tensor& from = ctx->input(0);
    const Tensor& offset = ctx->input(kSeqlenOffset);
    const int64_t b_size = batch->batch_size, s = batch->max_seq_len;
    batch->num_tokens = b_size * s;
    const bool good = from.dims() == 3 ? from.dim_size(0) == b_size && from.dim_size(1) == s
                                       : from.dim_size(0) == batch->num_tokens;
    if (!good) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from), ", expected [", b_size, ",",
                             s, ",H] or [", batch->num_tokens, ",H], by attr_mask's shape ",
                             ShapeOf(ctx->input(kMask)));
    }
    if (offset.dims() != 1 || offset.dim_size(0) != 2 * b_size + 1) {
      return InvalidArgument("trt_seqlen_offset has shape ", ShapeOf(offset), ", expected [",
                             2 * b_size + 1, "] = 2B+1");
    }
    const auto values = offset.flat<int32_t>();
    for (int64_t i = 0; i <= 2 * b_size; ++i) {
      const int64_t low = i / 2 * s, high = i % 2 ? low + s : low;
      if (values(i) < low || values(i) > high) {
        return InvalidArgument("trt_seqlen_offset[", i, "] is ", values(i), ", expected ", low,
                               high == low ? std::string() : StrCat(" to ", high),
                               " (0, s1, S, S+s2, 2S, ... with S = ", s, ")");
      }
    }
    return OkStatus();
  }

  Status CheckPacked(OpKernelContext* ctx, EncoderBatch* batch) const {
    const Tensor& from = ctx->input(0);
    const Tensor& id_offset = ctx->input(kIdOffset);
    const Tensor& offset = ctx->input(kSeqlenOffset);
    const int64_t b_size = batch->batch_size, s = batch->max_seq_len;
    if (id_offset.dims() != 1 || id_offset.dim_size(0) > b_size * s) {
      return InvalidArgument("sequence_id_offset has shape ", ShapeOf(id_offset),
                             ", expected [T] with T at most B * S = ", b_size * s);
    }
    const int64_t tokens = batch->num_tokens = id_offset.dim_size(0);
    if (from.dims() != 2 || from.dim_size(0) != tokens) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from), ", expected [", tokens,
                             ",H] by the length of sequence_id_offset, as remove_padding is true");
    }
    if (offset.dims() != 1 || offset.dim_size(0) != b_size + 1) {
      return InvalidArgument("trt_seqlen_offset has shape ", ShapeOf(offset), ", expected [",
                             b_size + 1, "] = B+1");
    }
    const auto ends = offset.flat<int32_t>();
    const auto ids = id_offset.flat<int32_t>();
    if (ends(0) != 0) {
      return InvalidArgument("trt_seqlen_offset[0] is ", ends(0), ", expected 0");
    }
    if (ends(b_size) != tokens) {
      return InvalidArgument("trt_seqlen_offset[", b_size, "] is ", ends(b_size), ", expected ",
                             tokens, ", the length of sequence_id_offset");
    }
    // All ends first: below they index sequence_id_offset.
    for (int64_t b = 0; b < b_size; ++b) {
      const int64_t low = ends(b), high = low + s;
      if (ends(b + 1) < low || ends(b + 1) > high) {
        return InvalidArgument("trt_seqlen_offset[", b + 1, "] is ", ends(b + 1), ", expected ",
                               low, " to ", high, ": the one before and at most S = ", s, " more");
      }
    }
    for (int64_t b = 0; b < b_size; ++b) {
      for (int64_t i = ends(b); i < ends(b + 1); ++i) {
        if (ids(i) != b * s - ends(b)) {
          return InvalidArgument("sequence_id_offset[", i, "] is ", ids(i), ", expected ",
                                 b * s - ends(b), " by trt_seqlen_offset (sequence ", b, ")");
        }
      }
    }
    return OkStatus();
  }
};

class BertEncoderKernel final : public EncoderKernel {
 public:
  explicit BertEncoderKernel(OpKernelConstruction* ctx) : EncoderKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_layers", &config_.num_layers));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("num_outputs", &num_outputs_));
    OP_REQUIRES(
        ctx, num_outputs_ == 1 || num_outputs_ == config_.num_layers,
        absl::InvalidArgumentError(StrCat("num_outputs is ", num_outputs_,
                                          ", expected 1 or num_layers = ", config_.num_layers)));
  }

 protected:
  Status ComputeOn(const Device& device, OpKernelContext* ctx) override {
    const Tensor& hidden = ctx->input(0);
    const Tensor& lengths = ctx->input(1);
    const Tensor& mask = ctx->input(2);
    if (hidden.dims() != 3 || hidden.dim_size(2) != config_.hidden_size()) {
      return InvalidArgument("hidden_states has shape ", ShapeOf(hidden), ", expected [B,S,",
                             config_.hidden_size(), "]; the last is head_num * size_per_head");
    }
    const int64_t batch_size = hidden.dim_size(0), seq_len = hidden.dim_size(1);
    FT_RETURN_IF_ERROR(CheckTokens("hidden_states", hidden, batch_size, seq_len));
    const bool has_mask = !(mask.dims() == 1 && mask.dim_size(0) == 0);
    if (has_mask) {
      int64_t mask_batch, mask_len;
      FT_RETURN_IF_ERROR(MaskSizes("attention_mask", mask, &mask_batch, &mask_len));
      if (mask_batch != batch_size || mask_len != seq_len) {
        return InvalidArgument("attention_mask has shape ", ShapeOf(mask), ", expected [",
                               batch_size, ",1,", seq_len, ",", seq_len, "] or [", batch_size, ",",
                               seq_len, ",", seq_len, "] by hidden_states, or [0] for none");
      }
    }
    const bool has_lengths = !(lengths.dims() == 1 && lengths.dim_size(0) == 0);
    if (!has_lengths && remove_padding_ && batch_size > 0) {
      return InvalidArgument("sequence_length has shape [0], expected [", batch_size,
                             "], as remove_padding is true");
    }
    int64_t real_tokens = batch_size * seq_len;
    if (has_lengths) {
      FT_RETURN_IF_ERROR(CheckLengths(lengths, batch_size, seq_len, &real_tokens));
    }
    std::shared_ptr<const PreparedWeights> weights;
    FT_RETURN_IF_ERROR(PrepareWeights(device, ctx, &weights));

    std::vector<void*> outputs;
    for (int i = 0; i < num_outputs_; ++i) {
      Tensor* output;
      FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(i, hidden.shape(), &output)));
      outputs.push_back(output->data());
    }
    EncoderBatch batch;
    batch.batch_size = batch_size;
    batch.max_seq_len = seq_len;
    batch.num_tokens = batch_size * seq_len;
    if (batch.num_tokens == 0) return OkStatus();
    batch.attention_mask = has_mask ? mask.data() : nullptr;
    Tensor integers;
    if (!remove_padding_ || real_tokens == batch.num_tokens) {
      batch.input = hidden.data();
      batch.outputs = outputs;
      // Full sequences need no lengths.
      if (real_tokens != batch.num_tokens) {
        FT_RETURN_IF_ERROR(device.ToDevice(lengths.flat<int32_t>().data(), batch_size, &integers,
                                           &batch.key_lengths));
      }
      return RunEncoder(device, ctx, *weights, batch);
    }

    std::vector<int32_t> offsets(batch_size + 1, 0);
    for (int64_t b = 0; b < batch_size; ++b) {
      offsets[b + 1] = offsets[b] + lengths.flat<int32_t>()(b);
    }
    batch.packed = true;
    batch.num_tokens = real_tokens;
    FT_RETURN_IF_ERROR(
        device.ToDevice(offsets.data(), batch_size + 1, &integers, &batch.seq_offsets));
    const int64_t packed_bytes = AlignUp(real_tokens * row_bytes(), kAlignment);
    Tensor memory;
    void* rows;
    FT_RETURN_IF_ERROR(AllocateBytes(ctx, packed_bytes * (1 + num_outputs_), &memory, &rows));
    FT_RETURN_IF_ERROR(
        device.PackRows(hidden.data(), batch.seq_offsets, batch_size, seq_len, row_bytes(), rows));
    batch.input = rows;
    for (int i = 0; i < num_outputs_; ++i) {
      batch.outputs.push_back(static_cast<char*>(rows) + (i + 1) * packed_bytes);
    }
    if (real_tokens > 0) {
      FT_RETURN_IF_ERROR(RunEncoder(device, ctx, *weights, batch));
    }
    for (int i = 0; i < num_outputs_; ++i) {
      FT_RETURN_IF_ERROR(device.UnpackRows(batch.outputs[i], batch.seq_offsets, batch_size, seq_len,
                                           row_bytes(), outputs[i]));
    }
    return OkStatus();
  }

 private:
  // Inputs; the weights come field by field, each for all layers.
  static constexpr int kWeights = 3;

  int WeightInput(int layer, int field) const override {
    return kWeights + field * static_cast<int>(config_.num_layers) + layer;
  }

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
                              .HostMemory("amax_list")          \
                              .HostMemory("trt_seqlen_offset")  \
                              .TypeConstraint<T>("T"),          \
                          BertTransformerKernel);               \
  REGISTER_KERNEL_BUILDER(Name("BertEncoder")                   \
                              .Device(::tensorflow::DEVICE_GPU) \
                              .HostMemory("sequence_length")    \
                              .TypeConstraint<T>("T"),          \
                          BertEncoderKernel)
FT_REGISTER_CPU(float);
FT_REGISTER_CPU(Eigen::half);
FT_REGISTER_CPU(Eigen::bfloat16);
#ifdef FT_WITH_CUDA
FT_REGISTER_GPU(float);
FT_REGISTER_GPU(Eigen::half);
FT_REGISTER_GPU(Eigen::bfloat16);
#endif
#undef FT_REGISTER_CPU
#undef FT_REGISTER_GPU

}  // namespace
}  // namespace ft::op
