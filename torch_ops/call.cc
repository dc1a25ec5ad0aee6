#include "torch_ops/call.h"

#include <torch/csrc/stable/ops.h>

#include <functional>

#include "tf_ops/cpu/backend.h"

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

Call::Call(const Tensor& tensor) : tensor_(tensor) {}

Call::~Call() = default;

Status Call::Init(bool allow_tf32) {
  execution_.allocator = this;
  if (is_cuda()) return InitCuda(allow_tf32);
  pool_ = std::make_unique<TorchThreadPool>();
  execution_.pool = pool_.get();
  return OkStatus();
}

Status Call::GetRunner(const EncoderConfig& config, std::shared_ptr<Runner>* runner) const {
  if (is_cuda()) return GetCudaRunner(config, runner);
  // The CPU's encoders keep nothing from call to call, and modules keep the prepared weights.
  static const auto* const caches = new std::shared_ptr<DeviceCaches>(new DeviceCaches(0));
  *runner = std::make_shared<Runner>(config, EncoderOptions(), &cpu::CpuBackend(), *caches);
  return OkStatus();
}

Tensor Call::Empty(::torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) const {
  return ::torch::stable::empty(sizes, type, std::nullopt, tensor_.device());
}

Status Call::Allocate(int64_t bytes, Buffer* buffer) {
  if (bytes < 0) return Internal("asked for ", bytes, " bytes");
  // PyTorch aligns to 64 bytes only.
  const Tensor memory = Empty({bytes + kAlignment}, ScalarType::Byte);
  // The Tensor, in the deleter, keeps the memory.
  *buffer = Buffer(AlignUp(memory.mutable_data_ptr()), [memory](void*) {});
  return OkStatus();
}

#ifndef FT_WITH_CUDA

Status Call::InitCuda(bool) {
  return FailedPrecondition(
      "the tensors are on a GPU, but fastertransformer_torch's library was built without CUDA: "
      "expected tensors on the CPU, or a library built by FT_CUDA=1 scripts/build_torch.sh");
}

Status Call::GetCudaRunner(const EncoderConfig&, std::shared_ptr<Runner>*) const {
  return Internal("a GPU without CUDA");
}

#endif

}  // namespace ft::torch_op
