// What is known of a CUDA device, asked once.
#include "tf_ops/cuda/device_context.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {

Status GetLaunchContext(const ExecutionContext& execution, LaunchContext* context) {
  int device;
  FT_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  static std::mutex mutex;
  static auto* const known = new std::map<int, LaunchContext>();
  std::lock_guard<std::mutex> lock(mutex);
  LaunchContext& entry = (*known)[device];
  if (entry.compute_capability == 0) {
    int major, minor;
    FT_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    FT_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    FT_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetAttribute(&entry.num_multiprocessors, cudaDevAttrMultiProcessorCount, device));
    FT_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(
        &entry.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    entry.device = device;
    entry.compute_capability = major * 10 + minor;
  }
  *context = entry;
  context->stream = static_cast<cudaStream_t>(execution.stream);
  context->allow_tf32 = execution.allow_tf32;
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
