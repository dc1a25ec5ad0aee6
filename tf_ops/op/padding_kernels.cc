// BuildMaskRemovePadding and RebuildPadding, on every device.
#include <memory>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/op/device.h"
#include "tf_ops/op/op_utils.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

class BuildMaskRemovePaddingKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    RunGuarded(ctx, [&] { return Build(ctx); });
  }

 private:
  static Status Build(OpKernelContext* ctx) {
    const Tensor& from = ctx->input(0);
    const Tensor& lengths = ctx->input(1);
    if (from.dims() != 3) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from), ", expected [B,S,H]");
    }
    const int64_t batch = from.dim_size(0), seq_len = from.dim_size(1), hidden = from.dim_size(2);
    int64_t tokens;
    FT_RETURN_IF_ERROR(CheckLengths(lengths, batch, seq_len, &tokens));
    FT_RETURN_IF_ERROR(CheckTokens("from_tensor", from, batch, seq_len));
    Tensor *output, *id_offset;
    FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(0, TensorShape({tokens, hidden}), &output)));
    FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_output(1, TensorShape({tokens}), &id_offset)));
    std::vector<int32_t> offsets(batch + 1, 0);
    auto ids = id_offset->flat<int32_t>();
    for (int64_t b = 0; b < batch; ++b) {
      offsets[b + 1] = offsets[b] + lengths.flat<int32_t>()(b);
      for (int64_t row = offsets[b]; row < offsets[b + 1]; ++row) {
        ids(row) = static_cast<int32_t>(b * seq_len - offsets[b]);
      }
    }
    if (tokens * hidden == 0) return OkStatus();
    std::unique_ptr<Device> device;
    FT_RETURN_IF_ERROR(MakeDevice(ctx, &device));
    Tensor memory;
    const int32_t* device_offsets;
    FT_RETURN_IF_ERROR(device->ToDevice(offsets.data(), batch + 1, &memory, &device_offsets));
    return device->PackRows(from.data(), device_offsets, batch, seq_len,
                            hidden * tensorflow::DataTypeSize(from.dtype()), output->data());
  }
};

class RebuildPaddingKernel : public OpKernel {
 public:
  explicit RebuildPaddingKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    bool is_col32;
    int64_t int8_mode;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("isCOL32", &is_col32));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("int8_mode", &int8_mode));
    OP_REQUIRES(ctx, !is_col32 && int8_mode == 0,
                absl::UnimplementedError(StrCat("isCOL32 is ", is_col32 ? "true" : "false",
                                                " and int8_mode is ", int8_mode,
                                                ", not in this version: expected false and 0")));
  }

  void Compute(OpKernelContext* ctx) override {
    RunGuarded(ctx, [&] { return Rebuild(ctx); });
  }

 private:
  static Status Rebuild(OpKernelContext* ctx) {
    const Tensor& from = ctx->input(0);
    const Tensor& id_offset = ctx->input(1);
    if (from.dims() != 2) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from), ", expected [T,H]");
    }
    const int64_t tokens = from.dim_size(0), hidden = from.dim_size(1);
    if (id_offset.dims() != 1 || id_offset.dim_size(0) != tokens) {
      return InvalidArgument("sequence_id_offset has shape ", ShapeOf(id_offset), ", expected [",
                             tokens, "], a value for each row of from_tensor");
    }
    int64_t batch, seq_len;
    FT_RETURN_IF_ERROR(MaskSizes("atten_mask", ctx->input(2), &batch, &seq_len));
    const int64_t rows = batch * seq_len;
    const auto offsets = id_offset.flat<int32_t>();
    int64_t previous = -1;
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t row = i + offsets(i);
      if (row <= previous || row >= rows) {
        return InvalidArgument("sequence_id_offset[", i, "] is ", offsets(i), ", which is row ",
                               row, " of the padded layout, expected a row above ", previous,
                               " and below B * S = ", rows);
      }
      previous = row;
    }
    Tensor* output;
    FT_RETURN_IF_ERROR(
        FromAbsl(ctx->allocate_output(0, TensorShape({batch, seq_len, hidden}), &output)));
    const int64_t row_bytes = hidden * tensorflow::DataTypeSize(from.dtype());
    if (rows * row_bytes == 0) return OkStatus();
    std::unique_ptr<Device> device;
    FT_RETURN_IF_ERROR(MakeDevice(ctx, &device));
    Tensor memory;
    const int32_t* device_offsets;
    FT_RETURN_IF_ERROR(device->ToDevice(offsets.data(), tokens, &memory, &device_offsets));
    return device->ScatterRows(from.data(), device_offsets, tokens, rows, row_bytes,
                               output->data());
  }
};

#define FT_REGISTER_CPU(T)                                                                    \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("BuildMaskRemovePadding").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      BuildMaskRemovePaddingKernel);                                                          \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("RebuildPadding").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),         \
      RebuildPaddingKernel)
#define FT_REGISTER_GPU(T)                                      \
  REGISTER_KERNEL_BUILDER(Name("BuildMaskRemovePadding")        \
                              .Device(::tensorflow::DEVICE_GPU) \
                              .HostMemory("sequence_length")    \
                              .HostMemory("sequence_id_offset") \
                              .TypeConstraint<T>("T"),          \
                          BuildMaskRemovePaddingKernel);        \
  REGISTER_KERNEL_BUILDER(Name("RebuildPadding")                \
                              .Device(::tensorflow::DEVICE_GPU) \
                              .HostMemory("sequence_id_offset") \
                              .TypeConstraint<T>("T"),          \
                          RebuildPaddingKernel)
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
