// One Compute call: the backend of its device, and what core needs of TensorFlow to run there.
#pragma once

#include <memory>
#include <mutex>

#include "tensorflow/core/framework/op_kernel.h"
#include "tf_ops/core/runner.h"

namespace ft::op {

// All work goes where TensorFlow puts its own: into its thread pool, or on the GPU's compute
// stream, which nothing here waits for.
class Call : public Allocator {
 public:
  explicit Call(tensorflow::OpKernelContext* ctx);
  ~Call() override;

  // Before anything else. On a GPU its device is current in this thread until the Call is gone.
  Status Init();

  const Backend& backend() const { return *backend_; }
  const ExecutionContext& execution() const { return execution_; }

  // What all kernels and traces on this device share.
  Status GetCaches(std::shared_ptr<DeviceCaches>* caches) const;

  // From TensorFlow's allocator of the device.
  Status Allocate(int64_t bytes, Buffer* buffer) override;

 private:
  Status InitGpu();

  tensorflow::OpKernelContext* const ctx_;
  const Backend* backend_ = nullptr;
  ExecutionContext execution_;
  std::unique_ptr<ThreadPool> pool_;
  std::shared_ptr<void> device_scope_;
};

}  // namespace ft::op
