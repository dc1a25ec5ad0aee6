// BuildMaskRemovePadding and RebuildPadding, on every device.
#include <algorithm>

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

int64_t RowBytes(const PaddingPlan& plan, const Tensor& rows) {
  return plan.hidden_size * tensorflow::DataTypeSize(rows.dtype());
}

class BuildMaskRemovePaddingKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* ctx) override {
    RunGuarded(ctx, [&] { return Build(ctx); });
  }

 private:
  static Status Build(OpKernelContext* ctx) {
    const Tensor& from = ctx->input(0);
    PaddingPlan plan;
    FT_RETURN_IF_ERROR(PlanRemovePadding(ViewOf(from), ViewOf(ctx->input(1)), &plan));
    Tensor *output, *id_offset;
    FT_RETURN_IF_ERROR(AllocateOutput(ctx, 0, {plan.num_tokens, plan.hidden_size}, &output));
    FT_RETURN_IF_ERROR(AllocateOutput(ctx, 1, {plan.num_tokens}, &id_offset));
    std::copy(plan.id_offsets.begin(), plan.id_offsets.end(),
              static_cast<int32_t*>(id_offset->data()));
    Call call(ctx);
    FT_RETURN_IF_ERROR(call.Init());
    return RemovePadding(call.backend(), plan, from.data(), RowBytes(plan, from), output->data(),
                         call.execution());
  }
};

class RebuildPaddingKernel : public OpKernel {
 public:
  explicit RebuildPaddingKernel(OpKernelConstruction* ctx) : OpKernel(ctx) {
    bool is_col32;
    int64_t int8_mode;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("isCOL32", &is_col32));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("int8_mode", &int8_mode));
    OP_REQUIRES(
        ctx, !is_col32,
        absl::UnimplementedError("isCOL32 is true, expected false: no op here makes rows in "
                                 "that order"));
    OP_REQUIRES(
        ctx, int8_mode >= 0 && int8_mode <= 3,
        absl::InvalidArgumentError(StrCat("int8_mode is ", int8_mode, ", expected 0, 1, 2 or 3")));
  }

  void Compute(OpKernelContext* ctx) override {
    RunGuarded(ctx, [&] { return Rebuild(ctx); });
  }

 private:
  static Status Rebuild(OpKernelContext* ctx) {
    const Tensor& from = ctx->input(0);
    const TensorView mask = ViewOf(ctx->input(2));
    PaddingPlan plan;
    FT_RETURN_IF_ERROR(PlanRebuildPadding(ViewOf(from), ViewOf(ctx->input(1)), mask, &plan));
    Tensor* output;
    const Status allocated =
        AllocateOutput(ctx, 0, {plan.batch_size, plan.max_seq_len, plan.hidden_size}, &output);
    if (allocated.code() == StatusCode::kInvalidArgument) {
      return InvalidArgument("atten_mask has shape ", ShapeString(mask.shape),
                             " and from_tensor has shape ", ShapeString(ViewOf(from).shape),
                             ", expected [B,S,H] of fewer than 2^63 elements");
    }
    FT_RETURN_IF_ERROR(allocated);
    Call call(ctx);
    FT_RETURN_IF_ERROR(call.Init());
    return RebuildPadding(call.backend(), plan, from.data(), RowBytes(plan, from), output->data(),
                          call.execution());
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
FT_REGISTER_ALL_TYPES;

}  // namespace
}  // namespace ft::op
