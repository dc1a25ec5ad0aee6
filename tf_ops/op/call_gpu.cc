#include <cuda_runtime_api.h>

#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tf_ops/cuda/backend.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/op/call.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace ft::op {

Status Call::InitGpu() {
  auto* const stream = ctx_->op_device_context()->stream();
  execution_.stream = stream->platform_specific_handle().stream;
  execution_.allow_tf32 = tensorflow::tensor_float_32_execution_enabled();
  backend_ = &cuda::CudaBackend();
  // TensorFlow's context is the device's primary one, the same that the runtime uses.
  const int ordinal = stream->parent()->device_ordinal();
  int previous;
  FT_RETURN_IF_CUDA_ERROR(cudaGetDevice(&previous));
  if (previous != ordinal) {
    FT_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
    device_scope_ = std::shared_ptr<void>(nullptr, [previous](void*) { cudaSetDevice(previous); });
  }
  return OkStatus();
}

}  // namespace ft::op
