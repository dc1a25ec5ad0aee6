#include "tf_ops/op/call.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>

#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "tf_ops/cpu/backend.h"
#include "tf_ops/op/convert.h"

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

// Caches that live as long as TensorFlow's device does.
class DeviceCachesResource : public tensorflow::ResourceBase {
 public:
  explicit DeviceCachesResource(int64_t max_weight_bytes)
      : caches(std::make_shared<DeviceCaches>(max_weight_bytes)) {}
  std::string DebugString() const override { return "caches of fastertransformer_tf"; }

  const std::shared_ptr<DeviceCaches> caches;
};

}  // namespace

Call::Call(OpKernelContext* ctx) : ctx_(ctx) { execution_.allocator = this; }

Call::~Call() = default;

Status Call::Init() {
  if (VLOG_IS_ON(1)) {
    execution_.log = [this](const std::string& text) {
      VLOG(1) << ctx_->op_kernel().name() << ": " << text;
    };
  }
#ifdef FT_WITH_CUDA
  if (ctx_->device()->device_type() == tensorflow::DEVICE_GPU) return InitGpu();
#endif
  pool_ = std::make_unique<TfThreadPool>(ctx_);
  execution_.pool = pool_.get();
  backend_ = &cpu::CpuBackend();
  return OkStatus();
}

Status Call::GetCaches(std::shared_ptr<DeviceCaches>* caches) const {
  tensorflow::ResourceMgr* const resources = ctx_->resource_manager();
  DeviceCachesResource* resource;
  FT_RETURN_IF_ERROR(FromAbsl(resources->LookupOrCreate<DeviceCachesResource>(
      resources->default_container(), "fastertransformer_tf/caches", &resource,
      [this](DeviceCachesResource** created) {
        int64_t bytes;
        const Status status = backend_->MemoryBytes(&bytes);
        if (status.ok()) *created = new DeviceCachesResource(WeightCacheLimit(bytes));
        return ToAbsl(status);
      })));
  *caches = resource->caches;
  resource->Unref();
  return OkStatus();
}

Status Call::Allocate(int64_t bytes, Buffer* buffer) {
  if (bytes < 0) return Internal("asked for ", bytes, " bytes");
  Tensor memory;
  // TensorFlow aligns to 64 bytes only.
  FT_RETURN_IF_ERROR(FromAbsl(ctx_->allocate_temp(
      tensorflow::DT_INT8, tensorflow::TensorShape({bytes + kAlignment}), &memory)));
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  void* const aligned =
      reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  // The Tensor, in the deleter, keeps the memory.
  *buffer = Buffer(aligned, [memory](void*) {});
  return OkStatus();
}

}  // namespace ft::op
