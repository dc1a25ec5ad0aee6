#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <list>
#include <mutex>
#include <string>
#include <tuple>

#include "tf_ops/cuda/backend.h"
#include "torch_ops/call.h"

namespace ft::torch_op {
namespace {

// PyTorch's current stream of a device. The function is in libtorch_cuda, which a PyTorch for CPUs
// has not, so that nothing may be linked against it.
Status CurrentStream(int32_t device, void** stream) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const auto get_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<GetStream>(
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (get_stream == nullptr) {
    return FailedPrecondition(
        "the tensors are on a GPU, but this PyTorch has no libtorch_cuda.so with "
        "aoti_torch_get_current_cuda_stream: expected PyTorch for CUDA");
  }
  if (get_stream(device, stream) != 0) {
    return Internal("PyTorch does not tell its current stream of cuda:", device);
  }
  return OkStatus();
}

EncoderOptions ReadOptions() {
  const auto environment = [](const char* name) {
    const char* const value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  EncoderOptions options;
  options.allow_gemm_test = environment("FT_ALLOW_GEMM_TEST") == "1";
  options.gemm_config_dir = environment("FT_GEMM_CONFIG_DIR");
  return options;
}

// What makes the encoders of two calls the same, but for the inner size.
auto Comparable(const EncoderConfig& config) {
  return std::make_tuple(config.dtype, config.num_heads, config.head_size, config.num_layers,
                         config.activation, config.layernorm_epsilon, config.int8_mode);
}

// Runners, the most recently used first. All calls of one are on one stream, which its scratch
// memory needs.
class Runners {
 public:
  std::shared_ptr<Runner> Get(int32_t device, void* stream, const EncoderConfig& config) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->device == device && entry->stream == stream &&
          Comparable(entry->runner->config()) == Comparable(config)) {
        entries_.splice(entries_.begin(), entries_, entry);
        return entries_.front().runner;
      }
    }
    // Models on one stream share its scratch memory.
    std::shared_ptr<DeviceCaches> caches;
    for (const Entry& entry : entries_) {
      if (entry.device == device && entry.stream == stream) caches = entry.caches;
    }
    if (caches == nullptr) caches = std::make_shared<DeviceCaches>(0);
    auto runner = std::make_shared<Runner>(config, ReadOptions(), &cuda::CudaBackend(), caches);
    entries_.push_front({device, stream, caches, runner});
    if (entries_.size() > kMost) entries_.pop_back();
    return runner;
  }

 private:
  static constexpr size_t kMost = 32;

  struct Entry {
    int32_t device;
    void* stream;
    std::shared_ptr<DeviceCaches> caches;
    std::shared_ptr<Runner> runner;
  };

  std::mutex mutex_;
  std::list<Entry> entries_;
};

}  // namespace

Status Call::InitCuda(bool allow_tf32) {
  const int32_t device = tensor_.get_device_index();
  device_scope_ = std::make_shared<::torch::stable::accelerator::DeviceGuard>(device);
  execution_.allow_tf32 = allow_tf32;
  return CurrentStream(device, &execution_.stream);
}

Status Call::GetCudaRunner(const EncoderConfig& config, std::shared_ptr<Runner>* runner) const {
  // Never freed: PyTorch's allocator may be gone when the process ends.
  static auto* const runners = new Runners();
  *runner = runners->Get(tensor_.get_device_index(), execution_.stream, config);
  return OkStatus();
}

}  // namespace ft::torch_op
