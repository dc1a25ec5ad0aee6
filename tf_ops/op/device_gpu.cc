#include <cuda_runtime_api.h>

#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/kernels.h"
#include "tf_ops/op/device.h"
#include "tf_ops/op/op_utils.h"
#include "xla/stream_executor/stream.h"
#include "xla/stream_executor/stream_executor.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;

class GpuDevice : public Device {
 public:
  explicit GpuDevice(OpKernelContext* ctx) : ctx_(ctx) {}

  ~GpuDevice() override {
    if (restore_) cudaSetDevice(previous_);
  }

  Status Init() {
    auto* const stream = ctx_->op_device_context()->stream();
    execution_.stream = stream->platform_specific_handle().stream;
    execution_.allow_tf32 = tensorflow::tensor_float_32_execution_enabled();
    // TensorFlow's context is the device's primary one, the same that the runtime uses.
    const int ordinal = stream->parent()->device_ordinal();
    FT_RETURN_IF_CUDA_ERROR(cudaGetDevice(&previous_));
    if (previous_ != ordinal) {
      FT_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal));
      restore_ = true;
    }
    return cuda::GetLaunchContext(execution_, &launch_);
  }

  const ExecutionContext& execution() const override { return execution_; }

  Status CreateEncoder(const EncoderConfig& config, bool allow_gemm_test,
                       std::unique_ptr<Encoder>* encoder) const override {
    cuda::CudaEncoderOptions options;
    options.allow_gemm_test = allow_gemm_test;
    return cuda::CreateCudaEncoder(config, options, encoder);
  }

  void LogPlan(const EncoderConfig& config, const EncoderBatch& batch) const override {
    if (!VLOG_IS_ON(1)) return;
    const cuda::AttentionArgs args = cuda::MakeAttentionArgs(config, batch);
    const cuda::AttentionChoice choice = cuda::SelectAttention(args, launch_);
    VLOG(1) << ctx_->op_kernel().name() << ": " << batch.num_tokens << " tokens of "
            << batch.batch_size << "x" << batch.max_seq_len << (batch.packed ? ", packed" : "")
            << ", " << Name(config.dtype) << (execution_.allow_tf32 ? " (TF32 allowed)" : "")
            << "; attention kernel " << static_cast<int>(choice.kind) << ", "
            << choice.rows_per_block << " rows a block: " << choice.reason
            << (cuda::FindsMaskKeys(args) ? "; masks that are numbers of keys: as without" : "");
  }

  Status ToDevice(const int32_t* values, int64_t count, Tensor* memory,
                  const int32_t** data) const override {
    void* target;
    FT_RETURN_IF_ERROR(AllocateBytes(ctx_, count * 4, memory, &target));
    *data = static_cast<const int32_t*>(target);
    // More than a few launches' worth goes by a copy, which reads `values` before it returns.
    if (count <= kMaxStored) {
      return cuda::LaunchStoreIntegers(values, count, static_cast<int32_t*>(target), launch_);
    }
    FT_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(target, values, count * 4, cudaMemcpyHostToDevice, launch_.stream));
    return OkStatus();
  }

  Status PackRows(const void* padded, const int32_t* offsets, int64_t batch_size,
                  int64_t max_seq_len, int64_t row_bytes, void* packed) const override {
    return cuda::LaunchRemovePadding(padded, offsets, batch_size, max_seq_len, row_bytes, packed,
                                     launch_);
  }

  Status UnpackRows(const void* packed, const int32_t* offsets, int64_t batch_size,
                    int64_t max_seq_len, int64_t row_bytes, void* padded) const override {
    return cuda::LaunchRebuildPadding(packed, offsets, batch_size, max_seq_len, row_bytes, padded,
                                      launch_);
  }

  Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                     int64_t padded_rows, int64_t row_bytes, void* padded) const override {
    return cuda::LaunchScatterRows(packed, id_offsets, num_tokens, padded_rows, row_bytes, padded,
                                   launch_);
  }

 private:
  static constexpr int64_t kMaxStored = 5000;

  OpKernelContext* const ctx_;
  ExecutionContext execution_;
  cuda::LaunchContext launch_;
  int previous_ = 0;
  bool restore_ = false;
};

}  // namespace

Status MakeGpuDevice(OpKernelContext* ctx, std::unique_ptr<Device>* device) {
  auto made = std::make_unique<GpuDevice>(ctx);
  FT_RETURN_IF_ERROR(made->Init());
  *device = std::move(made);
  return OkStatus();
}

}  // namespace ft::op
