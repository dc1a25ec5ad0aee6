// Launching kernels: what is known of each on a device, and the checks of what is passed to it.
#pragma once

#include <cuda_runtime.h>

#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Blocks of a launch, as computed, so that no narrowing hides a number that is too large.
struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Blocks of a cluster, along x and y; one: a kernel without clusters.
struct ClusterSize {
  unsigned x = 1, y = 1;
};

inline cudaLaunchAttribute ClusterAttribute(const ClusterSize& size) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {size.x, size.y, 1};
  return attribute;
}

// A kernel as the current device runs it. Its dynamic shared memory is raised to what the device
// has, once, so that no launch with less stands in the way of one with more.
struct KernelTraits {
  // Its code has the wait for the previous kernel that overlapping launches need. Code for an older
  // architecture, which the driver translates, has not, even on a device that could.
  bool waits_for_previous = false;
  int max_dynamic_shared_bytes = 0;
};

// Asks CUDA at a thread's first launch of the kernel on the device.
Status GetKernelTraits(const void* kernel, const LaunchContext& context, KernelTraits* traits);

// How many clusters of blocks of the kernel the current device runs at a time; `config` is of a
// launch of one, always the same for a kernel. Asks CUDA as GetKernelTraits does.
Status GetMaxActiveClusters(const void* kernel, const cudaLaunchConfig_t& config,
                            const LaunchContext& context, int* clusters);

// Checks `grid` and `shared_bytes`, and fills `config` but for its attributes.
Status ConfigureLaunch(const KernelTraits& traits, const Grid& grid, int threads,
                       int64_t shared_bytes, const LaunchContext& context,
                       cudaLaunchConfig_t* config);

// Launches `kernel` on context.stream. With context.overlap its prologue may run while the stream's
// previous kernel ends.
template <typename... Params, typename... Args>
Status LaunchClusters(void (*kernel)(Params...), const Grid& grid, const ClusterSize& cluster,
                      int threads, int64_t shared_bytes, const LaunchContext& context,
                      Args... args) {
  KernelTraits traits;
  cudaLaunchConfig_t config = {};
  FT_RETURN_IF_ERROR(GetKernelTraits(reinterpret_cast<const void*>(kernel), context, &traits));
  FT_RETURN_IF_ERROR(ConfigureLaunch(traits, grid, threads, shared_bytes, context, &config));
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (cluster.x * cluster.y > 1) attributes[config.numAttrs++] = ClusterAttribute(cluster);
  if (context.overlap && traits.waits_for_previous) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  // Braces: an argument that would be narrowed does not compile.
  FT_RETURN_IF_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, Params{args}...));
  return OkStatus();
}

// The same without clusters.
template <typename... Params, typename... Args>
Status Launch(void (*kernel)(Params...), const Grid& grid, int threads, int64_t shared_bytes,
              const LaunchContext& context, Args... args) {
  return LaunchClusters(kernel, grid, {}, threads, shared_bytes, context, args...);
}

}  // namespace cuda
}  // namespace ft
