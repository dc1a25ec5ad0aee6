#include "torch_ops/labels.h"

#ifdef FT_WITH_CUDA
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "tf_ops/cuda/cuda_check.h"
#endif

namespace ft::torch_op {

#ifdef FT_WITH_CUDA

namespace {

// The labels that were seen, by address and size of the tensors. Memory that was freed may come
// again with another label: a wrong one is looked at again, and preparing weights writes here.
class Labels {
 public:
  bool Find(const void* data, int64_t bytes, std::vector<char>* label) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = labels_.find({data, bytes});
    if (found == labels_.end()) return false;
    *label = found->second;
    return true;
  }

  void Set(const void* data, int64_t bytes, const std::vector<char>& label) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (labels_.size() >= kMost) labels_.clear();
    labels_[{data, bytes}] = label;
  }

 private:
  static constexpr size_t kMost = 1024;
  std::mutex mutex_;
  std::map<std::pair<const void*, int64_t>, std::vector<char>> labels_;
};

Labels& KnownLabels() {
  static auto* const labels = new Labels();
  return *labels;
}

Status Fetch(const TensorView& prepared, const ExecutionContext& context,
             std::vector<char>* label) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  cudaStreamCaptureStatus capturing;
  FT_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) {
    return FailedPrecondition(
        "prepared is seen for the first time while a CUDA graph is captured: run the model once "
        "before");
  }
  label->resize(kAlignment);
  FT_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(label->data(), prepared.data, kAlignment, cudaMemcpyDeviceToHost, stream));
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  KnownLabels().Set(prepared.data, prepared.shape[0], *label);
  return OkStatus();
}

}  // namespace

Status WriteCudaLabel(const std::vector<char>& label, const Tensor& prepared,
                      const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(prepared.mutable_data_ptr(), label.data(), kAlignment,
                                          cudaMemcpyHostToDevice, stream));
  // Until then the copy may read `label`.
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  KnownLabels().Set(prepared.const_data_ptr(), prepared.numel(), label);
  return OkStatus();
}

Status OpenCudaPrepared(const Encoder& encoder, const TensorView& prepared,
                        const ExecutionContext& context,
                        std::shared_ptr<const PreparedWeights>* weights) {
  FT_RETURN_IF_ERROR(CheckPreparedTensor(prepared));
  std::vector<char> label;
  if (KnownLabels().Find(prepared.data, prepared.shape[0], &label) &&
      OpenPreparedTensor(encoder, prepared, label.data(), weights).ok()) {
    return OkStatus();
  }
  FT_RETURN_IF_ERROR(Fetch(prepared, context, &label));
  return OpenPreparedTensor(encoder, prepared, label.data(), weights);
}

#else

Status WriteCudaLabel(const std::vector<char>&, const Tensor&, const ExecutionContext&) {
  return Internal("a GPU without CUDA");
}

Status OpenCudaPrepared(const Encoder&, const TensorView&, const ExecutionContext&,
                        std::shared_ptr<const PreparedWeights>*) {
  return Internal("a GPU without CUDA");
}

#endif

}  // namespace ft::torch_op
