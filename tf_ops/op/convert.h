// From TensorFlow's types to core's and back.
#pragma once

#include <exception>
#include <new>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/types.h"

namespace ft::op {

// Codes map one to one.
absl::Status ToAbsl(const Status& status);
Status FromAbsl(const absl::Status& status);

// The types that the ops' signatures name; InvalidArgument for others.
Status ToDataType(tensorflow::DataType type, DataType* dtype);

// `tensor`'s memory, type and shape. The type must be one that ToDataType knows.
TensorView ViewOf(const tensorflow::Tensor& tensor);

// Allocates output `index` of sizes that may come from several inputs, so that their product may be
// anything: InvalidArgument where TensorFlow has no such shape.
Status AllocateOutput(tensorflow::OpKernelContext* ctx, int index,
                      std::initializer_list<int64_t> sizes, tensorflow::Tensor** output);

// Runs `compute` and hands its status to `ctx`. No exception crosses into TensorFlow.
template <typename Function>
void RunGuarded(tensorflow::OpKernelContext* ctx, const Function& compute) {
  Status status;
  try {
    status = compute();
  } catch (const std::bad_alloc&) {
    status = ResourceExhausted("out of host memory");
  } catch (const std::exception& error) {
    status = Internal(error.what());
  }
  if (!status.ok()) ctx->SetStatus(ToAbsl(status));
}

}  // namespace ft::op
