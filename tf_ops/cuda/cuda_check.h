// Turns CUDA runtime errors into Status.
#pragma once

#include <cuda_runtime_api.h>

#include "tf_ops/core/status.h"

namespace ft {
namespace cuda {

inline Status CudaStatus(cudaError_t error, const char* expression, const char* file, int line) {
  if (error == cudaSuccess) return OkStatus();
  // It has been reported: whoever asks this thread for its last error next is not to find it again.
  cudaGetLastError();
  const std::string text = StrCat(expression, " at ", file, ":", line, " returned ",
                                  cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return ResourceExhausted(text);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return FailedPrecondition(
          "the library has no code for this GPU (build it with its compute capability in "
          "FT_CUDA_ARCHS): ",
          text);
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
      return FailedPrecondition(text);
    default:
      return Internal(text);
  }
}

}  // namespace cuda
}  // namespace ft

#define FT_RETURN_IF_CUDA_ERROR(expression) \
  FT_RETURN_IF_ERROR(::ft::cuda::CudaStatus((expression), #expression, __FILE__, __LINE__))
