#include "tf_ops/cuda/launch.h"

#include <cstdint>
#include <map>
#include <utility>

namespace ft {
namespace cuda {

Status GetKernelTraits(const void* kernel, const LaunchContext& context, KernelTraits* traits) {
  // One for each thread: looked up at every launch, it may not make threads wait for each other.
  static thread_local std::map<std::pair<const void*, int>, KernelTraits> known;
  const auto key = std::make_pair(kernel, context.device);
  const auto found = known.find(key);
  if (found != known.end()) {
    *traits = found->second;
    return OkStatus();
  }
  cudaFuncAttributes attributes;
  FT_RETURN_IF_CUDA_ERROR(cudaFuncGetAttributes(&attributes, kernel));
  traits->waits_for_previous = attributes.ptxVersion >= 90;
  traits->max_dynamic_shared_bytes =
      context.max_shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  FT_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               traits->max_dynamic_shared_bytes));
  known[key] = *traits;
  return OkStatus();
}

Status GetMaxActiveClusters(const void* kernel, const cudaLaunchConfig_t& config,
                            const LaunchContext& context, int* clusters) {
  static thread_local std::map<std::pair<const void*, int>, int> known;
  const auto key = std::make_pair(kernel, context.device);
  const auto found = known.find(key);
  if (found != known.end()) {
    *clusters = found->second;
    return OkStatus();
  }
  FT_RETURN_IF_CUDA_ERROR(cudaOccupancyMaxActiveClusters(clusters, kernel, &config));
  known[key] = *clusters;
  return OkStatus();
}

Status ConfigureLaunch(const KernelTraits& traits, const Grid& grid, int threads,
                       int64_t shared_bytes, const LaunchContext& context,
                       cudaLaunchConfig_t* config) {
  constexpr int64_t kMaxX = INT32_MAX, kMaxYZ = 65535;
  if (grid.x > kMaxX || grid.y > kMaxYZ || grid.z > kMaxYZ) {
    return Unimplemented("a kernel would need ", grid.x, "x", grid.y, "x", grid.z,
                         " blocks; a GPU takes at most ", kMaxX, "x", kMaxYZ, "x", kMaxYZ);
  }
  if (shared_bytes > traits.max_dynamic_shared_bytes) {
    return Unimplemented("a kernel would need ", shared_bytes,
                         " bytes of shared memory; this GPU has ", traits.max_dynamic_shared_bytes);
  }
  config->gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                         static_cast<unsigned>(grid.z));
  config->blockDim = dim3(threads);
  config->dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config->stream = context.stream;
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
