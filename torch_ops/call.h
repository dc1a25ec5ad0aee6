// What core needs of PyTorch to run one call: the backend of its device, threads or stream, memory.
#pragma once

#include <memory>

#include "tf_ops/core/runner.h"
#include "torch_ops/convert.h"

namespace ft::torch_op {

// On the CPU all work goes into PyTorch's intra-op threads, on a GPU to its current stream, which
// only the checks wait for that have to read numbers. All memory comes from PyTorch's allocators.
class Call : public Allocator {
 public:
  // For tensors on the device of `tensor`, which is kept.
  explicit Call(const Tensor& tensor);
  ~Call() override;

  // Before anything else. A GPU is current in this thread until the Call is gone.
  Status Init(bool allow_tf32);

  bool is_cuda() const { return tensor_.is_cuda(); }
  const ExecutionContext& execution() const { return execution_; }

  // The runner of a configuration: on a GPU the one of the last call with it on this stream, for it
  // keeps CUDA graphs.
  Status GetRunner(const EncoderConfig& config, std::shared_ptr<Runner>* runner) const;

  // An uninitialised tensor on the device.
  Tensor Empty(::torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) const;

  Status Allocate(int64_t bytes, Buffer* buffer) override;

 private:
  // Those of a GPU; without CUDA in the library FailedPrecondition.
  Status InitCuda(bool allow_tf32);
  Status GetCudaRunner(const EncoderConfig& config, std::shared_ptr<Runner>* runner) const;

  const Tensor tensor_;
  std::unique_ptr<ThreadPool> pool_;
  std::shared_ptr<void> device_scope_;
  ExecutionContext execution_;
};

}  // namespace ft::torch_op
