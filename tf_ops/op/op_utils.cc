#include "tf_ops/op/op_utils.h"

#include <limits>

namespace ft::op {

using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;

absl::Status ToAbsl(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return absl::OkStatus();
    case StatusCode::kInvalidArgument:
      return absl::InvalidArgumentError(status.message());
    case StatusCode::kUnimplemented:
      return absl::UnimplementedError(status.message());
    case StatusCode::kFailedPrecondition:
      return absl::FailedPreconditionError(status.message());
    case StatusCode::kResourceExhausted:
      return absl::ResourceExhaustedError(status.message());
    case StatusCode::kInternal:
      return absl::InternalError(status.message());
  }
  return absl::InternalError(status.message());
}

Status FromAbsl(const absl::Status& status) {
  std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return OkStatus();
    case absl::StatusCode::kInvalidArgument:
      return Status(StatusCode::kInvalidArgument, std::move(message));
    case absl::StatusCode::kUnimplemented:
      return Status(StatusCode::kUnimplemented, std::move(message));
    case absl::StatusCode::kFailedPrecondition:
      return Status(StatusCode::kFailedPrecondition, std::move(message));
    case absl::StatusCode::kResourceExhausted:
      return Status(StatusCode::kResourceExhausted, std::move(message));
    default:
      return Status(StatusCode::kInternal, std::move(message));
  }
}

Status ToDataType(tensorflow::DataType type, DataType* dtype) {
  switch (type) {
    case tensorflow::DT_FLOAT:
      *dtype = DataType::kFloat32;
      return OkStatus();
    case tensorflow::DT_HALF:
      *dtype = DataType::kFloat16;
      return OkStatus();
    case tensorflow::DT_BFLOAT16:
      *dtype = DataType::kBFloat16;
      return OkStatus();
    case tensorflow::DT_INT32:
      *dtype = DataType::kInt32;
      return OkStatus();
    case tensorflow::DT_INT8:
      *dtype = DataType::kInt8;
      return OkStatus();
    default:
      return InvalidArgument("dtype is ", tensorflow::DataTypeString(type),
                             ", expected float, half, bfloat16, int32 or int8");
  }
}

TensorView ViewOf(const Tensor& tensor) {
  TensorView view;
  view.data = tensor.data();
  // The op's signature allows no other type.
  if (!ToDataType(tensor.dtype(), &view.dtype).ok()) view.data = nullptr;
  for (int i = 0; i < tensor.dims(); ++i) view.shape.push_back(tensor.dim_size(i));
  return view;
}

std::string ShapeOf(const Tensor& tensor) { return tensor.shape().DebugString(); }

Status MaskSizes(const char* name, const Tensor& mask, int64_t* batch_size, int64_t* max_seq_len) {
  const int rank = mask.dims();
  const bool good = (rank == 3 || (rank == 4 && mask.dim_size(1) == 1)) &&
                    mask.dim_size(rank - 1) == mask.dim_size(rank - 2);
  if (!good) {
    return InvalidArgument(name, " has shape ", ShapeOf(mask), ", expected [B,1,S,S] or [B,S,S]");
  }
  *batch_size = mask.dim_size(0);
  *max_seq_len = mask.dim_size(rank - 1);
  return OkStatus();
}

Status CheckTokens(const char* name, const Tensor& tensor, int64_t batch_size,
                   int64_t max_seq_len) {
  if (batch_size > 0 && max_seq_len > std::numeric_limits<int32_t>::max() / batch_size) {
    return InvalidArgument(name, " has shape ", ShapeOf(tensor), ", expected B * S below 2^31");
  }
  return OkStatus();
}

Status CheckLengths(const Tensor& lengths, int64_t batch_size, int64_t max_seq_len,
                    int64_t* num_tokens) {
  if (lengths.dims() != 1 || lengths.dim_size(0) != batch_size) {
    return InvalidArgument("sequence_length has shape ", ShapeOf(lengths), ", expected [",
                           batch_size, "]");
  }
  const auto values = lengths.flat<int32_t>();
  *num_tokens = 0;
  for (int64_t b = 0; b < batch_size; ++b) {
    if (values(b) < 0 || values(b) > max_seq_len) {
      return InvalidArgument("sequence_length[", b, "] is ", values(b), ", expected 0 to ",
                             max_seq_len);
    }
    *num_tokens += values(b);
  }
  return OkStatus();
}

Status AllocateBytes(OpKernelContext* ctx, int64_t bytes, Tensor* tensor, void** data) {
  if (bytes < 0) return Internal("asked for ", bytes, " bytes");
  // TensorFlow aligns to 64 bytes only.
  const tensorflow::TensorShape shape({bytes + kAlignment});
  FT_RETURN_IF_ERROR(FromAbsl(ctx->allocate_temp(tensorflow::DT_INT8, shape, tensor)));
  const auto address = reinterpret_cast<uintptr_t>(tensor->data());
  *data = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  return OkStatus();
}

}  // namespace ft::op
