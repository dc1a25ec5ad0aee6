// What core needs of PyTorch to run one call on the CPU.
#pragma once

#include <memory>

#include "tf_ops/core/runner.h"

namespace ft::torch_op {

// All work goes into PyTorch's intra-op threads, all memory comes from its allocator.
class Call : public Allocator {
 public:
  Call();
  ~Call() override;

  const ExecutionContext& execution() const { return execution_; }

  Status Allocate(int64_t bytes, Buffer* buffer) override;

 private:
  std::unique_ptr<ThreadPool> pool_;
  ExecutionContext execution_;
};

}  // namespace ft::torch_op
