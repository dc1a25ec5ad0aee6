// What the kernels need of the device that they run on, so that one text serves the CPU and GPUs.
#pragma once

#include <memory>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/encoder.h"

namespace ft::op {

// The device of one Compute call. All work goes where TensorFlow puts its own: into its thread
// pool, or on the GPU's compute stream, which nothing here waits for.
//
// `padded` has B sequences of S rows, `packed` one row for each token; rows are row_bytes long.
class Device {
 public:
  virtual ~Device() = default;

  virtual const ExecutionContext& execution() const = 0;

  // allow_gemm_test: search the fastest GEMM algorithms at the first call of a new shape.
  virtual Status CreateEncoder(const EncoderConfig& config, bool allow_gemm_test,
                               std::unique_ptr<Encoder>* encoder) const = 0;

  // Logs at level 1 how `batch` is computed.
  virtual void LogPlan(const EncoderConfig& config, const EncoderBatch& batch) const = 0;

  // *data: `values` where the encoder can read them, for as long as both `values` and *memory live.
  virtual Status ToDevice(const int32_t* values, int64_t count, tensorflow::Tensor* memory,
                          const int32_t** data) const = 0;

  // Copies the first offsets[b+1] - offsets[b] rows of sequence b to packed row offsets[b] on.
  // `offsets` is ToDevice's.
  virtual Status PackRows(const void* padded, const int32_t* offsets, int64_t batch_size,
                          int64_t max_seq_len, int64_t row_bytes, void* packed) const = 0;

  // The other way; rows past a length become zero bytes.
  virtual Status UnpackRows(const void* packed, const int32_t* offsets, int64_t batch_size,
                            int64_t max_seq_len, int64_t row_bytes, void* padded) const = 0;

  // padded[i + id_offsets[i]] = packed[i] and zero bytes in the other rows. `id_offsets` is
  // ToDevice's; all targets are inside and no two the same.
  virtual Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                             int64_t padded_rows, int64_t row_bytes, void* padded) const = 0;
};

std::unique_ptr<Device> MakeCpuDevice(tensorflow::OpKernelContext* ctx);

#ifdef FT_WITH_CUDA
// Makes the context's GPU current in this thread until the Device is gone.
Status MakeGpuDevice(tensorflow::OpKernelContext* ctx, std::unique_ptr<Device>* device);
#endif

// The device of the kernel that `ctx` belongs to.
Status MakeDevice(tensorflow::OpKernelContext* ctx, std::unique_ptr<Device>* device);

}  // namespace ft::op
