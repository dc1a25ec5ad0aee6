#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "tf_ops/cpu/encoder.h"
#include "tf_ops/op/device.h"

namespace ft::op {
namespace {

using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;

// TensorFlow's intra-op threads as core's ThreadPool.
class TfThreadPool : public ThreadPool {
 public:
  explicit TfThreadPool(OpKernelContext* ctx) {
    const auto* threads = ctx->device()->tensorflow_cpu_worker_threads();
    workers_ = threads->workers;
    num_threads_ = std::max(1, threads->num_threads);
  }

  int num_threads() const override { return num_threads_; }

  void ParallelFor(int64_t num_tasks, const std::function<void(int64_t)>& work) override {
    const int64_t runners = std::min<int64_t>(num_threads_, num_tasks);
    if (runners <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) work(i);
      return;
    }
    std::atomic<int64_t> next{0};
    // One block per runner; a runner that starts late finds the tasks taken and returns at once.
    workers_->ParallelFor(runners, tensorflow::thread::ThreadPool::SchedulingParams::Fixed(1),
                          [&](int64_t begin, int64_t end) {
                            for (int64_t runner = begin; runner < end; ++runner) {
                              for (int64_t i; (i = next.fetch_add(1)) < num_tasks;) work(i);
                            }
                          });
  }

 private:
  tensorflow::thread::ThreadPool* workers_;
  int num_threads_;
};

// memcpy and memset with null pointers are undefined even for 0 bytes.
void Copy(char* to, const char* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Clear(char* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

class CpuDevice : public Device {
 public:
  explicit CpuDevice(OpKernelContext* ctx) : pool_(ctx) { execution_.pool = &pool_; }

  const ExecutionContext& execution() const override { return execution_; }

  Status CreateEncoder(const EncoderConfig& config, bool,
                       std::unique_ptr<Encoder>* encoder) const override {
    return cpu::CreateCpuEncoder(config, encoder);
  }

  void LogPlan(const EncoderConfig&, const EncoderBatch&) const override {}

  Status ToDevice(const int32_t* values, int64_t, Tensor*, const int32_t** data) const override {
    *data = values;
    return OkStatus();
  }

  Status PackRows(const void* padded, const int32_t* offsets, int64_t batch_size,
                  int64_t max_seq_len, int64_t row_bytes, void* packed) const override {
    execution_.pool->ParallelFor(batch_size, [&](int64_t b) {
      Copy(static_cast<char*>(packed) + offsets[b] * row_bytes,
           static_cast<const char*>(padded) + b * max_seq_len * row_bytes,
           (offsets[b + 1] - offsets[b]) * row_bytes);
    });
    return OkStatus();
  }

  Status UnpackRows(const void* packed, const int32_t* offsets, int64_t batch_size,
                    int64_t max_seq_len, int64_t row_bytes, void* padded) const override {
    execution_.pool->ParallelFor(batch_size, [&](int64_t b) {
      char* to = static_cast<char*>(padded) + b * max_seq_len * row_bytes;
      const int64_t real_bytes = (offsets[b + 1] - offsets[b]) * row_bytes;
      Copy(to, static_cast<const char*>(packed) + offsets[b] * row_bytes, real_bytes);
      Clear(to + real_bytes, max_seq_len * row_bytes - real_bytes);
    });
    return OkStatus();
  }

  Status ScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                     int64_t padded_rows, int64_t row_bytes, void* padded) const override {
    char* const target = static_cast<char*>(padded);
    const char* const source = static_cast<const char*>(packed);
    Clear(target, padded_rows * row_bytes);
    // Blocks of rows: a task for each row would cost more than its copy.
    constexpr int64_t kBlock = 64;
    execution_.pool->ParallelFor((num_tokens + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t end = std::min(num_tokens, (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        Copy(target + (i + id_offsets[i]) * row_bytes, source + i * row_bytes, row_bytes);
      }
    });
    return OkStatus();
  }

 private:
  TfThreadPool pool_;
  ExecutionContext execution_;
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(OpKernelContext* ctx) {
  return std::make_unique<CpuDevice>(ctx);
}

Status MakeDevice(OpKernelContext* ctx, std::unique_ptr<Device>* device) {
#ifdef FT_WITH_CUDA
  // A GPU's device context; the CPU has none.
  if (ctx->device()->device_type() == tensorflow::DEVICE_GPU) return MakeGpuDevice(ctx, device);
#endif
  *device = MakeCpuDevice(ctx);
  return OkStatus();
}

}  // namespace ft::op
