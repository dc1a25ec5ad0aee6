#include "tf_ops/cuda/backend.h"

#include <cuda_runtime_api.h>

#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/rows/padding.h"

namespace ft {
namespace cuda {
namespace {

class Cuda final : public Backend {
 public:
  Status CreateEncoder(const EncoderConfig& config, const EncoderOptions& options,
                       std::unique_ptr<Encoder>* encoder) const override {
    CudaEncoderOptions cuda_options;
    cuda_options.allow_gemm_test = options.allow_gemm_test;
    cuda_options.gemm_config_dir = options.gemm_config_dir;
    cuda_options.ieee_float32 = IeeeFloat32Requested();
    return CreateCudaEncoder(config, cuda_options, encoder);
  }

  std::string Describe(const EncoderConfig& config, const EncoderBatch& batch,
                       const ExecutionContext& context) const override {
    LaunchContext launch;
    if (!GetLaunchContext(context, &launch).ok()) return "";  // Run says what is wrong
    AttentionArgs args = MakeAttentionArgs(config, batch);
    args.ieee_float32 = IeeeFloat32Requested();
    const AttentionChoice choice = SelectAttention(args, launch);
    return StrCat(batch.num_tokens, " tokens of ", batch.batch_size, "x", batch.max_seq_len,
                  batch.packed ? ", packed" : "", ", ", Name(config.dtype),
                  config.int8_mode != 0 ? StrCat(", int8_mode ", config.int8_mode) : "",
                  config.fp8_mode != 0 ? StrCat(", fp8_mode ", config.fp8_mode) : "",
                  context.allow_tf32 ? " (TF32 allowed)" : "", "; attention kernel ",
                  static_cast<int>(choice.kind), ", ", choice.rows_per_block,
                  " rows a block: ", choice.reason,
                  FindsMaskKeys(args) ? "; masks that are numbers of keys: as without" : "");
  }

  // Kernels load 16 bytes at a time.
  int64_t row_alignment() const override { return 16; }

  bool TakesTurns(const ExecutionContext& context) const override {
    cudaStreamCaptureStatus capturing;
    const cudaError_t error =
        cudaStreamIsCapturing(static_cast<cudaStream_t>(context.stream), &capturing);
    if (error != cudaSuccess) cudaGetLastError();  // Run says what is wrong
    return error == cudaSuccess && capturing == cudaStreamCaptureStatusNone;
  }

  int64_t RoundRows(int64_t num_tokens) const override { return cuda::RoundRows(num_tokens); }

  Status MemoryBytes(int64_t* bytes) const override {
    size_t free_bytes, total_bytes;
    FT_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
    *bytes = static_cast<int64_t>(total_bytes);
    return OkStatus();
  }

  Status ToDevice(const int32_t* values, int64_t count, int32_t* memory,
                  const ExecutionContext& context, const int32_t** data) const override {
    LaunchContext launch;
    FT_RETURN_IF_ERROR(GetLaunchContext(context, &launch));
    *data = memory;
    return LaunchStoreIntegers(values, count, memory, launch);
  }

  Status Copy(const void* from, int64_t bytes, void* to,
              const ExecutionContext& context) const override {
    FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                                            static_cast<cudaStream_t>(context.stream)));
    return OkStatus();
  }

  Status RemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                       int64_t max_seq_len, int64_t row_bytes, void* packed,
                       const ExecutionContext& context) const override {
    LaunchContext launch;
    FT_RETURN_IF_ERROR(GetLaunchContext(context, &launch));
    return LaunchRemovePadding(padded, offsets, batch_size, max_seq_len, row_bytes, packed, launch);
  }

  Status RebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                        int64_t max_seq_len, int64_t row_bytes, void* padded,
                        const ExecutionContext& context) const override {
    LaunchContext launch;
    FT_RETURN_IF_ERROR(GetLaunchContext(context, &launch));
    return LaunchRebuildPadding(packed, offsets, batch_size, max_seq_len, row_bytes, padded,
                                launch);
  }

  Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                     int64_t padded_rows, int64_t row_bytes, void* padded,
                     const ExecutionContext& context) const override {
    LaunchContext launch;
    FT_RETURN_IF_ERROR(GetLaunchContext(context, &launch));
    return LaunchScatterRows(packed, id_offsets, num_tokens, padded_rows, row_bytes, padded,
                             launch);
  }
};

}  // namespace

const Backend& CudaBackend() {
  static const Cuda* const backend = new Cuda();
  return *backend;
}

}  // namespace cuda
}  // namespace ft
