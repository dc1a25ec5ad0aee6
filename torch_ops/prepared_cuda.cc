#include "torch_ops/prepared_cuda.h"

#include <string>

#ifdef FT_WITH_CUDA
#include <cuda_runtime_api.h>

#include "tf_ops/cuda/cuda_check.h"
#endif

namespace ft::torch_op {
namespace {

// Bytes behind the weights: a multiple of kTensorAlignment, at most 256 KiB.
int64_t HashBytes(const Encoder& encoder) {
  constexpr uint64_t kOffset = 14695981039346656037u, kPrime = 1099511628211u;  // FNV-1a
  constexpr uint64_t kValues = 4093;
  uint64_t hash = kOffset;
  for (const char c : PreparedTensorLabel(encoder)) {
    hash = (hash ^ static_cast<unsigned char>(c)) * kPrime;
  }
  return static_cast<int64_t>(hash % kValues) * kTensorAlignment;
}

}  // namespace

int64_t CudaPreparedBytes(const Encoder& encoder) {
  return PreparedTensorBytes(encoder) + HashBytes(encoder);
}

#ifdef FT_WITH_CUDA

namespace {

// Why a tensor of the wrong size is not what the encoder expects.
Status WrongSize(const Encoder& encoder, const TensorView& prepared,
                 const ExecutionContext& context) {
  const Status by_size = InvalidArgument(
      "prepared has ", prepared.shape[0], " bytes, expected ", CudaPreparedBytes(encoder),
      ": it was prepared for another type, device, int8_mode or other sizes");
  const auto stream = static_cast<cudaStream_t>(context.stream);
  cudaStreamCaptureStatus capturing;
  FT_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) return by_size;
  std::string label(kAlignment, '\0');
  FT_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(label.data(), prepared.data, kAlignment, cudaMemcpyDeviceToHost, stream));
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  std::shared_ptr<const PreparedWeights> unused;
  const Status by_label = OpenPreparedTensor(encoder, prepared, label.data(), &unused);
  return by_label.ok() ? by_size : by_label;
}

}  // namespace

Status PrepareCudaTensor(const Encoder& encoder, const std::vector<LayerWeights>& layers,
                         void* tensor, const ExecutionContext& context) {
  std::string label(kAlignment, '\0');
  FT_RETURN_IF_ERROR(PrepareTensor(encoder, layers, tensor, label.data(), context));
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FT_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(tensor, label.data(), kAlignment, cudaMemcpyHostToDevice, stream));
  // Zeros behind the weights, so that equal weights make equal tensors.
  FT_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(static_cast<char*>(tensor) + PreparedTensorBytes(encoder),
                                          0, HashBytes(encoder), stream));
  // Until then the copy may read `label`.
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  return OkStatus();
}

Status OpenCudaPrepared(const Encoder& encoder, const TensorView& prepared,
                        const ExecutionContext& context,
                        std::shared_ptr<const PreparedWeights>* weights) {
  FT_RETURN_IF_ERROR(CheckPreparedTensor(prepared));
  if (prepared.shape[0] != CudaPreparedBytes(encoder)) {
    return WrongSize(encoder, prepared, context);
  }
  TensorView without_hash = prepared;
  without_hash.shape = {PreparedTensorBytes(encoder)};
  return OpenPreparedTensor(encoder, without_hash, PreparedTensorLabel(encoder).data(), weights);
}

#else

Status PrepareCudaTensor(const Encoder&, const std::vector<LayerWeights>&, void*,
                         const ExecutionContext&) {
  return Internal("a GPU without CUDA");
}

Status OpenCudaPrepared(const Encoder&, const TensorView&, const ExecutionContext&,
                        std::shared_ptr<const PreparedWeights>*) {
  return Internal("a GPU without CUDA");
}

#endif

}  // namespace ft::torch_op
