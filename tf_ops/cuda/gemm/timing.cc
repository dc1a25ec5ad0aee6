#include "tf_ops/cuda/gemm/timing.h"

#include <algorithm>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {
namespace {

struct Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ~Graph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

}  // namespace

LaunchTimer::~LaunchTimer() {
  if (begin_ != nullptr) cudaEventDestroy(begin_);
  if (end_ != nullptr) cudaEventDestroy(end_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status LaunchTimer::Init(cudaStream_t before) {
  FT_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  FT_RETURN_IF_CUDA_ERROR(cudaEventCreate(&begin_));
  FT_RETURN_IF_CUDA_ERROR(cudaEventCreate(&end_));
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(before));
  return OkStatus();
}

Status LaunchTimer::Time(const std::function<Status(int run, cudaStream_t stream)>& launch,
                         int num_runs, float* milliseconds) {
  Graph made;
  FT_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  Status launched = OkStatus();
  for (int run = 0; run < num_runs && launched.ok(); ++run) launched = launch(run, stream_);
  // A capture that has begun has to end.
  FT_RETURN_IF_CUDA_ERROR(cudaStreamEndCapture(stream_, &made.graph));
  FT_RETURN_IF_ERROR(launched);
  FT_RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&made.exec, made.graph, 0));
  for (int round = 0; round < 2; ++round) {
    float total = 0.f;
    FT_RETURN_IF_CUDA_ERROR(cudaEventRecord(begin_, stream_));
    FT_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(made.exec, stream_));
    FT_RETURN_IF_CUDA_ERROR(cudaEventRecord(end_, stream_));
    FT_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end_));
    FT_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&total, begin_, end_));
    *milliseconds = round == 0 ? total / num_runs : std::min(*milliseconds, total / num_runs);
  }
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
