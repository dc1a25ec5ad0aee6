#include "torch_ops/convert.h"

#include <torch/csrc/stable/ops.h>

#include <new>
#include <stdexcept>
#include <string>

namespace ft::torch_op {

void ThrowIfError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw std::invalid_argument(status.message());
    case StatusCode::kResourceExhausted:
      throw std::bad_alloc();
    case StatusCode::kUnimplemented:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kInternal:
      break;
  }
  throw std::runtime_error(status.message());
}

Status ToDataType(const char* name, const Tensor& tensor, DataType* dtype) {
  const ScalarType type = tensor.scalar_type();
  switch (type) {
    case ScalarType::Float:
      *dtype = DataType::kFloat32;
      return OkStatus();
    case ScalarType::Half:
      *dtype = DataType::kFloat16;
      return OkStatus();
    case ScalarType::BFloat16:
      *dtype = DataType::kBFloat16;
      return OkStatus();
    case ScalarType::Int:
      *dtype = DataType::kInt32;
      return OkStatus();
    case ScalarType::Long:
      *dtype = DataType::kInt64;
      return OkStatus();
    case ScalarType::Char:
      *dtype = DataType::kInt8;
      return OkStatus();
    case ScalarType::Byte:
      *dtype = DataType::kUint8;
      return OkStatus();
    default:
      return InvalidArgument(name, " has dtype ", ::torch::headeronly::toString(type),
                             ", expected a float type of at most 32 bits or an integer type");
  }
}

Status ViewOf(const char* name, const Tensor& tensor, TensorView* view) {
  FT_RETURN_IF_ERROR(ToDataType(name, tensor, &view->dtype));
  view->data = tensor.const_data_ptr();
  view->shape = Shape();
  for (const int64_t size : tensor.sizes()) view->shape.push_back(size);
  return OkStatus();
}

Status CheckDevice(const char* name, const Tensor& tensor, const Tensor& other) {
  const auto device = [](const Tensor& of) {
    if (of.is_cpu()) return std::string("cpu");
    return StrCat(of.is_cuda() ? "cuda:" : "another kind of device, number ",
                  of.get_device_index());
  };
  if (device(tensor) == device(other)) return OkStatus();
  return InvalidArgument(name, " is on ", device(tensor), ", expected ", device(other),
                         " as the other tensors");
}

Tensor Contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : ::torch::stable::contiguous(tensor);
}

}  // namespace ft::torch_op
