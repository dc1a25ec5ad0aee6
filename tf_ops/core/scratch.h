// Temporary memory at addresses that stay.
#pragma once

#include <mutex>

#include "tf_ops/core/execution.h"

namespace ft {

// On a GPU the work of all calls is ordered by their stream, so that they can take turns with one
// block of memory. It keeps its address from call to call, as CUDA graphs need it. A turn lasts
// until all of a call's work is on the stream.
class Scratch {
 public:
  class Turn {
   public:
    void* data() const { return memory_.get(); }

   private:
    friend class Scratch;
    std::unique_lock<std::mutex> lock_;
    Buffer memory_;
  };

  // Waits for the turn, with at least `bytes` bytes. Where calls are not ordered (`shared` false),
  // and where more is asked for than is worth keeping, the memory is the caller's own.
  Status Take(int64_t bytes, bool shared, const ExecutionContext& context, Turn* turn);

 private:
  // Batches beyond that keep the GPU busy for so long that launching kernels costs nothing.
  static constexpr int64_t kMaxBytes = int64_t{256} << 20;

  std::mutex mutex_;
  Buffer memory_;
  int64_t bytes_ = 0;
};

}  // namespace ft
