#include "torch_ops/masks_cuda.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>

#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/rows/seen_keys.h"

namespace ft::torch_op {
namespace {

// Whether the call's stream is being captured.
Status IsCapturing(const ExecutionContext& context, bool* is_capturing) {
  cudaStreamCaptureStatus status;
  FT_RETURN_IF_CUDA_ERROR(
      cudaStreamIsCapturing(static_cast<cudaStream_t>(context.stream), &status));
  *is_capturing = status != cudaStreamCaptureStatusNone;
  return OkStatus();
}

// Copies from the device to the host, and waits for it.
Status Fetch(const void* from, int64_t bytes, void* to, const char* what,
             const ExecutionContext& context) {
  bool is_capturing;
  FT_RETURN_IF_ERROR(IsCapturing(context, &is_capturing));
  if (is_capturing) {
    return FailedPrecondition(what,
                              " would have to be read by the host, which cannot be while a CUDA "
                              "graph is captured: expected remove_padding false, no "
                              "sequence_length on the GPU, and a mask of bool");
  }
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  return OkStatus();
}

// sequence_length where the host can read it: as it is, or copied into *memory.
Status ReadLengths(const Tensor& given, const ExecutionContext& context, AttentionInputs* inputs) {
  inputs->length_tensor = Contiguous(given);
  FT_RETURN_IF_ERROR(ViewOf("sequence_length", *inputs->length_tensor, &inputs->sequence_length));
  if (given.is_cpu()) return OkStatus();
  const int64_t bytes = given.numel() * SizeOf(inputs->sequence_length.dtype);
  inputs->fetched_lengths.resize(bytes);
  FT_RETURN_IF_ERROR(Fetch(inputs->sequence_length.data, bytes, inputs->fetched_lengths.data(),
                           "sequence_length", context));
  inputs->sequence_length.data = inputs->fetched_lengths.data();
  return OkStatus();
}

// The mask's memory; a dimension of stride 0 is one element that stands for all.
cuda::SeenKeys Describe(const Tensor& mask, MaskForm form, int64_t batch_size, int64_t seq_len) {
  cuda::SeenKeys seen;
  seen.data = mask.const_data_ptr();
  seen.is_float = mask.scalar_type() == ScalarType::Float;
  seen.batch_size = batch_size;
  seen.seq_len = seq_len;
  seen.batch_stride = mask.stride(0);
  seen.key_stride = mask.stride(mask.dim() - 1);
  seen.query_stride = form.for_all ? 0 : mask.stride(mask.dim() - 2);
  seen.queries = form.for_all || seen.query_stride == 0 ? 1 : seq_len;
  return seen;
}

}  // namespace

Status ReadCudaAttention(const TensorView& hidden_states,
                         const std::optional<Tensor>& sequence_length,
                         const std::optional<Tensor>& attention_mask, bool reads_lengths,
                         const ExecutionContext& context, AttentionInputs* inputs) {
  if (sequence_length.has_value()) {
    FT_RETURN_IF_ERROR(ReadLengths(*sequence_length, context, inputs));
  }
  inputs->attention_mask.dtype = hidden_states.dtype;
  if (!attention_mask.has_value()) return OkStatus();

  const int64_t batch_size = hidden_states.shape[0], seq_len = hidden_states.shape[1];
  MaskForm form;
  FT_RETURN_IF_ERROR(CheckMask(*attention_mask, batch_size, seq_len, &form));
  if (batch_size * seq_len == 0) return OkStatus();
  const cuda::SeenKeys seen = Describe(*attention_mask, form, batch_size, seq_len);
  cuda::LaunchContext launch;
  FT_RETURN_IF_ERROR(cuda::GetLaunchContext(context, &launch));
  const bool wants_lengths = reads_lengths && !sequence_length.has_value();
  if (wants_lengths || seen.is_float) {
    Buffer memory;
    std::vector<int32_t> summary(2 * batch_size);
    const int64_t bytes = batch_size * 8;
    FT_RETURN_IF_ERROR(context.allocator->Allocate(bytes, &memory));
    FT_RETURN_IF_ERROR(
        cuda::LaunchSummarizeSeenKeys(seen, static_cast<int32_t*>(memory.get()), launch));
    FT_RETURN_IF_ERROR(Fetch(memory.get(), bytes, summary.data(), "attention_mask", context));
    int32_t flags = 0;
    for (int64_t b = 0; b < batch_size; ++b) flags |= summary[2 * b + 1];
    if (flags & cuda::kHasBias) {
      return InvalidArgument("attention_mask holds a number that is neither 0 nor at most ",
                             cuda::kNotSeen, ": a bias on the scores is not supported");
    }
    if (wants_lengths && !(flags & cuda::kQueriesDiffer)) {
      for (int64_t b = 0; b < batch_size; ++b) inputs->lengths.push_back(summary[2 * b]);
      inputs->sequence_length = {inputs->lengths.data(), DataType::kInt32, {batch_size}};
      if (!(flags & cuda::kHasGaps)) return OkStatus();
    }
  }
  const int64_t mask_bytes = batch_size * seq_len * seq_len * SizeOf(hidden_states.dtype);
  FT_RETURN_IF_ERROR(context.allocator->Allocate(mask_bytes, &inputs->mask));
  FT_RETURN_IF_ERROR(cuda::LaunchWriteMask(seen, hidden_states.dtype, inputs->mask.get(), launch));
  inputs->attention_mask = {
      inputs->mask.get(), hidden_states.dtype, {batch_size, seq_len, seq_len}};
  return OkStatus();
}

}  // namespace ft::torch_op
