// BuildMaskRemovePadding and RebuildPadding on the CPU.
#include <cstring>
#include <limits>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/op/op_utils.h"
#include "tf_ops/op/padding.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;

class BuildMaskRemovePaddingCpu : public OpKernel {
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
    if (batch > 0 && seq_len > std::numeric_limits<int32_t>::max() / batch) {
      return InvalidArgument("from_tensor has shape ", ShapeOf(from),
                             ", expected B * S below 2^31, as sequence_id_offset is int32");
    }
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
    TfThreadPool pool(ctx);
    PackRows(from.data(), offsets.data(), batch, seq_len,
             hidden * tensorflow::DataTypeSize(from.dtype()), output->data(), &pool);
    return OkStatus();
  }
};

class RebuildPaddingCpu : public OpKernel {
 public:
  explicit RebuildPaddingCpu(OpKernelConstruction* ctx) : OpKernel(ctx) {
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
    std::memset(output->data(), 0, rows * row_bytes);
    if (tokens == 0) return OkStatus();
    const char* source = static_cast<const char*>(from.data());
    char* target = static_cast<char*>(output->data());
    // Blocks of rows: a task for each row would cost more than its copy.
    constexpr int64_t kBlock = 64;
    TfThreadPool pool(ctx);
    pool.ParallelFor((tokens + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t end = std::min(tokens, (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        std::memcpy(target + (i + offsets(i)) * row_bytes, source + i * row_bytes, row_bytes);
      }
    });
    return OkStatus();
  }
};

#define FT_REGISTER(T)                                                                        \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("BuildMaskRemovePadding").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      BuildMaskRemovePaddingCpu);                                                             \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name("RebuildPadding").Device(::tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),         \
      RebuildPaddingCpu)
FT_REGISTER(float);
FT_REGISTER(Eigen::half);
FT_REGISTER(Eigen::bfloat16);
#undef FT_REGISTER

}  // namespace
}  // namespace ft::op
