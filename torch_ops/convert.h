// From PyTorch's types to core's, and from core's status to exceptions, which PyTorch's stable ABI
// passes on to Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "tf_ops/core/types.h"

namespace ft::torch_op {

using ::torch::headeronly::ScalarType;
using ::torch::stable::Tensor;

// Returns where `status` is OK. std::invalid_argument, in Python ValueError, for InvalidArgument;
// std::bad_alloc, MemoryError, for ResourceExhausted; else std::runtime_error, RuntimeError.
void ThrowIfError(const Status& status);

// Float types, int32, int64, int8 and uint8; InvalidArgument for others. `name` is the tensor's.
Status ToDataType(const char* name, const Tensor& tensor, DataType* dtype);

// `tensor`'s memory, type and shape; the tensor is contiguous.
Status ViewOf(const char* name, const Tensor& tensor, TensorView* view);

// InvalidArgument unless `tensor` is on the device of `other`, such as cuda:0.
Status CheckDevice(const char* name, const Tensor& tensor, const Tensor& other);

// `tensor` itself, or a contiguous copy of it.
Tensor Contiguous(const Tensor& tensor);

}  // namespace ft::torch_op
