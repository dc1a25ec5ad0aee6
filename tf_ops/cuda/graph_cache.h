// CUDA graphs of calls whose sizes and addresses were seen before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <vector>

#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Any number of threads.
class GraphCache {
 public:
  // Everything that a captured graph depends on, but for the device.
  using Key = std::vector<uint64_t>;
  // Puts the work on the stream of the context that it is given.
  using Enqueue = std::function<Status(const LaunchContext& context)>;

  explicit GraphCache(int max_graphs);
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Puts the work on context.stream, which no capture is under way on: as a graph where one of this
  // key exists. The first call of a key runs as it is, the second is captured, if there is credit:
  // memory that never comes back at the same address costs no capture. What cannot be captured runs
  // as it is.
  Status Run(Key key, const LaunchContext& context, const Enqueue& enqueue);

 private:
  struct Entry {
    Key key;
    cudaGraphExec_t exec = nullptr;  // null: seen, not captured
    bool has_failed = false;         // to be captured: not tried again
  };

  // Captures on a stream of its own: the caller's may belong to others, too.
  Status Capture(const LaunchContext& context, const Enqueue& enqueue, cudaGraphExec_t* exec);

  const int max_graphs_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  int credit_;
  std::map<int, cudaStream_t> capture_streams_;  // by device
};

}  // namespace cuda
}  // namespace ft
