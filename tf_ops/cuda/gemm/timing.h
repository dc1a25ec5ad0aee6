// The time of a product on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

#include "tf_ops/core/types.h"

namespace ft {
namespace cuda {

// Runs of a product whose weights are in so many places, which are taken in turn.
inline int TimedRuns(size_t num_weights) {
  return 3 * static_cast<int>(num_weights < 4 ? 4 : num_weights);
}

// Times launches on a stream of its own.
class LaunchTimer {
 public:
  LaunchTimer() = default;
  ~LaunchTimer();
  LaunchTimer(const LaunchTimer&) = delete;
  LaunchTimer& operator=(const LaunchTimer&) = delete;

  // Waits for `before`, on which the operands may still be on their way.
  Status Init(cudaStream_t before);

  // Milliseconds of one run of `launch`, which gets the number of the run, up to num_runs. They are
  // one CUDA graph: launched one by one, small products would be timed by the speed of the host.
  // The better of two rounds, against a disturbance.
  Status Time(const std::function<Status(int run, cudaStream_t stream)>& launch, int num_runs,
              float* milliseconds);

  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace cuda
}  // namespace ft
