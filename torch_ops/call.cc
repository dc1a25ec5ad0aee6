#include "torch_ops/call.h"

#include <torch/csrc/stable/ops.h>

#include <functional>

#include "torch_ops/convert.h"

namespace ft::torch_op {
namespace {

// PyTorch's intra-op threads as core's ThreadPool.
class TorchThreadPool : public FrameworkThreadPool {
 public:
  int num_threads() const override { return num_threads_; }

 protected:
  void RunOnThreads(int64_t runners, const std::function<void()>& run) override {
    ::torch::stable::parallel_for(0, runners, 1, [&](int64_t begin, int64_t end) {
      for (int64_t runner = begin; runner < end; ++runner) run();
    });
  }

 private:
  const int num_threads_ = static_cast<int>(::torch::stable::get_num_threads());
};

}  // namespace

Call::Call() : pool_(std::make_unique<TorchThreadPool>()) {
  execution_.pool = pool_.get();
  execution_.allocator = this;
}

Call::~Call() = default;

Status Call::Allocate(int64_t bytes, Buffer* buffer) {
  if (bytes < 0) return Internal("asked for ", bytes, " bytes");
  // PyTorch aligns to 64 bytes only.
  const Tensor memory = ::torch::stable::empty({bytes + kAlignment}, ScalarType::Byte);
  // The Tensor, in the deleter, keeps the memory.
  *buffer = Buffer(AlignUp(memory.mutable_data_ptr()), [memory](void*) {});
  return OkStatus();
}

}  // namespace ft::torch_op
