#include "tf_ops/cuda/graph_cache.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {
namespace {

// To capture and instantiate a graph takes the host as long as to launch the kernels of several
// calls. Calls whose addresses rarely come back (several threads on one session) must not each pay
// for it: a call earns one credit, a capture costs this many.
constexpr int kCaptureCost = 16;

}  // namespace

GraphCache::GraphCache(int max_graphs)
    : max_graphs_(std::max(1, max_graphs)), credit_(kCaptureCost * max_graphs_) {}

GraphCache::~GraphCache() {
  for (const Entry& entry : entries_) {
    if (entry.exec != nullptr) cudaGraphExecDestroy(entry.exec);
  }
  for (const auto& stream : capture_streams_) cudaStreamDestroy(stream.second);
}

Status GraphCache::Run(Key key, const LaunchContext& context, const Enqueue& enqueue) {
  key.push_back(static_cast<uint64_t>(context.device));
  std::unique_lock<std::mutex> lock(mutex_);
  credit_ = std::min(credit_ + 1, kCaptureCost * max_graphs_);
  auto entry = entries_.begin();
  while (entry != entries_.end() && entry->key != key) ++entry;
  if (entry == entries_.end()) {
    while (entries_.size() >= static_cast<size_t>(max_graphs_)) {
      if (entries_.back().exec != nullptr) cudaGraphExecDestroy(entries_.back().exec);
      entries_.pop_back();
    }
    entries_.push_front({std::move(key), nullptr, false});
    lock.unlock();
    return enqueue(context);
  }
  entries_.splice(entries_.begin(), entries_, entry);
  if (entry->exec == nullptr) {
    if (entry->has_failed || credit_ < kCaptureCost) {
      lock.unlock();
      return enqueue(context);
    }
    credit_ -= kCaptureCost;
    const Status captured = Capture(context, enqueue, &entry->exec);
    if (!captured.ok()) {
      // Whatever stands in the way of a capture need not stand in the way of the work: if it does,
      // the caller is told by the work itself.
      entry->exec = nullptr;
      entry->has_failed = true;
      lock.unlock();
      static std::once_flag reported;
      std::call_once(reported, [&] {
        fprintf(stderr,
                "[WARNING] fastertransformer_tf: a CUDA graph could not be captured, kernels are "
                "launched one by one: %s\n",
                captured.message().c_str());
      });
      return enqueue(context);
    }
  }
  // Under the lock, so that the entry is not evicted before it is launched.
  FT_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(entry->exec, context.stream));
  return OkStatus();
}

Status GraphCache::Capture(const LaunchContext& context, const Enqueue& enqueue,
                           cudaGraphExec_t* exec) {
  cudaStream_t& stream = capture_streams_[context.device];
  if (stream == nullptr) {
    FT_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  FT_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  LaunchContext captured = context;
  captured.stream = stream;
  const Status status = enqueue(captured);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (!status.ok() || ended != cudaSuccess) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    const Status end_status = CudaStatus(ended, "cudaStreamEndCapture", __FILE__, __LINE__);
    return status.ok() ? end_status : status;
  }
  const cudaError_t instantiated = cudaGraphInstantiate(exec, graph, 0);
  cudaGraphDestroy(graph);
  return CudaStatus(instantiated, "cudaGraphInstantiate", __FILE__, __LINE__);
}

}  // namespace cuda
}  // namespace ft
