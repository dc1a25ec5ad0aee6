// Where the kernels of a call go, and what their device can do.
#pragma once

#include <cuda_runtime_api.h>

#include "tf_ops/core/execution.h"

namespace ft {
namespace cuda {

// Where kernels of one call go, and what the device can do.
struct LaunchContext {
  cudaStream_t stream = nullptr;
  int device = 0;
  int compute_capability = 0;  // 90 for 9.0
  int num_multiprocessors = 0;
  int max_shared_bytes = 0;  // of one block, opted in
  bool allow_tf32 = false;   // in float32 products
  // The next launch may overlap the stream's previous kernel (sm_90). False for the first kernel of
  // a call: what runs before it may be writing the weights, which kernels read ahead.
  bool overlap = false;
};

// The context of the current device for `execution`.
Status GetLaunchContext(const ExecutionContext& execution, LaunchContext* context);

}  // namespace cuda
}  // namespace ft
