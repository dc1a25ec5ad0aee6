// What a device can do beside running an encoder: the interface through which Runner uses the CPU
// and the CUDA backend.
#pragma once

#include <memory>
#include <string>

#include "tf_ops/core/encoder.h"

namespace ft {

// What an encoder is created with, apart from the model's sizes.
struct EncoderOptions {
  // GPU: search the fastest GEMM algorithms at the first call of a new shape.
  bool allow_gemm_test = false;
  // GPU: the folder of gemm_config.in, which is read and, by allow_gemm_test, written. Empty: none.
  std::string gemm_config_dir;
};

// Functions without state. Nothing waits for the device. `padded` has B sequences of S rows,
// `packed` one row for each token; rows are row_bytes long.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual Status CreateEncoder(const EncoderConfig& config, const EncoderOptions& options,
                               std::unique_ptr<Encoder>* encoder) const = 0;

  // How `batch` will be computed, in words; empty where there is nothing to say.
  virtual std::string Describe(const EncoderConfig& config, const EncoderBatch& batch,
                               const ExecutionContext& context) const = 0;

  // The alignment, in bytes, that rows given to an encoder need.
  virtual int64_t row_alignment() const = 0;

  // Whether calls may take turns with one block of memory: their work is done later, in their
  // order, on a stream that nobody captures. (A captured graph would keep addresses that later
  // calls may change.)
  virtual bool TakesTurns(const ExecutionContext& context) const = 0;

  // The rows to compute `num_tokens` packed tokens with, at least as many: where sizes cost
  // something, few different ones.
  virtual int64_t RoundRows(int64_t num_tokens) const = 0;

  // Physical memory of the current device.
  virtual Status MemoryBytes(int64_t* bytes) const = 0;

  // Puts integers of the host where kernels can read them. *data: `values` themselves, or a copy in
  // `memory`, device memory for `count` integers. `values` may go when this returns, on a GPU.
  virtual Status ToDevice(const int32_t* values, int64_t count, int32_t* memory,
                          const ExecutionContext& context, const int32_t** data) const = 0;

  // Copies device memory to device memory.
  virtual Status Copy(const void* from, int64_t bytes, void* to,
                      const ExecutionContext& context) const = 0;

  // Copies the first offsets[b+1] - offsets[b] rows of sequence b to packed row offsets[b] on.
  // `offsets` is ToDevice's, int32 [B+1].
  virtual Status RemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                               int64_t max_seq_len, int64_t row_bytes, void* packed,
                               const ExecutionContext& context) const = 0;

  // The other way; rows past a length become zero bytes.
  virtual Status RebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                                int64_t max_seq_len, int64_t row_bytes, void* padded,
                                const ExecutionContext& context) const = 0;

  // padded[i + id_offsets[i]] = packed[i] and zero bytes in the other rows. `id_offsets` is
  // ToDevice's; all targets are inside and no two the same.
  virtual Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                             int64_t padded_rows, int64_t row_bytes, void* padded,
                             const ExecutionContext& context) const = 0;
};

}  // namespace ft
