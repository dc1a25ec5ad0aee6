#include "tf_ops/op/convert.h"

#include <string>
#include <utility>

namespace ft::op {

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
    case tensorflow::DT_INT64:
      *dtype = DataType::kInt64;
      return OkStatus();
    case tensorflow::DT_INT8:
      *dtype = DataType::kInt8;
      return OkStatus();
    default:
      return InvalidArgument("dtype is ", tensorflow::DataTypeString(type),
                             ", expected float, half, bfloat16, int32, int64 or int8");
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

Status AllocateOutput(tensorflow::OpKernelContext* ctx, int index,
                      std::initializer_list<int64_t> sizes, Tensor** output) {
  tensorflow::TensorShape shape;
  // The constructor of a TensorShape ends the process where this returns an error.
  FT_RETURN_IF_ERROR(FromAbsl(tensorflow::TensorShape::BuildTensorShape(sizes, &shape)));
  return FromAbsl(ctx->allocate_output(index, shape, output));
}

}  // namespace ft::op
