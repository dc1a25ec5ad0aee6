// What the kernels share: the way from TensorFlow's types to core's, and checks of inputs.
#pragma once

#include <new>
#include <string>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/encoder.h"

namespace ft::op {

// Codes map one to one.
absl::Status ToAbsl(const Status& status);
Status FromAbsl(const absl::Status& status);

// float, half, bfloat16, int32, int8; InvalidArgument for others.
Status ToDataType(tensorflow::DataType type, DataType* dtype);

// `tensor`'s memory, type and shape. The type must be one that ToDataType knows.
TensorView ViewOf(const tensorflow::Tensor& tensor);

std::string ShapeOf(const tensorflow::Tensor& tensor);

// B and S of a mask [B,1,S,S] or [B,S,S]; InvalidArgument if it is neither.
Status MaskSizes(const char* name, const tensorflow::Tensor& mask, int64_t* batch_size,
                 int64_t* max_seq_len);

// Checks that row numbers of B sequences of S rows are int32, as offsets are.
Status CheckTokens(const char* name, const tensorflow::Tensor& tensor, int64_t batch_size,
                   int64_t max_seq_len);

// Checks sequence_length, int32 [B] on the host, each in [0,S], and adds them up.
Status CheckLengths(const tensorflow::Tensor& lengths, int64_t batch_size, int64_t max_seq_len,
                    int64_t* num_tokens);

// Temporary memory of a call, aligned to kAlignment. Lives as long as `*tensor`.
Status AllocateBytes(tensorflow::OpKernelContext* ctx, int64_t bytes, tensorflow::Tensor* tensor,
                     void** data);

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
