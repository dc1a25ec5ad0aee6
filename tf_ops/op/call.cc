#include "tf_ops/op/call.h"

#include <algorithm>
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
class TfThreadPool : public FrameworkThreadPool {
 public:
  explicit TfThreadPool(OpKernelContext* ctx) {
    const auto* threads = ctx->device()->tensorflow_cpu_worker_threads();
    workers_ = threads->workers;
    num_threads_ = std::max(1, threads->num_threads);
  }

  int num_threads() const override { return num_threads_; }

 protected:
  void RunOnThreads(int64_t runners, const std::function<void()>& run) override {
    // One block per runner.
    workers_->ParallelFor(runners, tensorflow::thread::ThreadPool::SchedulingParams::Fixed(1),
                          [&](int64_t begin, int64_t end) {
                            for (int64_t runner = begin; runner < end; ++runner) run();
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
  // The Tensor, in the deleter, keeps the memory.
  *buffer = Buffer(AlignUp(memory.data()), [memory](void*) {});
  return OkStatus();
}

}  // namespace ft::op
