// Where and how a call runs: what a backend is given by the framework that it serves.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "tf_ops/core/types.h"

namespace ft {

// Threads of the CPU backend.
class ThreadPool {
 public:
  virtual ~ThreadPool() = default;
  virtual int num_threads() const = 0;
  // Calls work(i) once for each i in [0, num_tasks), from any threads, and returns when all are
  // done. Tasks are handed out in order, one at a time. `work` must not throw.
  virtual void ParallelFor(int64_t num_tasks, const std::function<void(int64_t)>& work) = 0;
};

// The threads of a framework that has a parallel loop of its own.
class FrameworkThreadPool : public ThreadPool {
 public:
  void ParallelFor(int64_t num_tasks, const std::function<void(int64_t)>& work) final {
    const int64_t runners = std::min<int64_t>(num_threads(), num_tasks);
    if (runners <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) work(i);
      return;
    }
    std::atomic<int64_t> next{0};
    // A runner that starts late finds the tasks taken and returns at once.
    RunOnThreads(runners, [&] {
      for (int64_t i; (i = next.fetch_add(1)) < num_tasks;) work(i);
    });
  }

 protected:
  // Calls run() `runners` times, on as many threads where they are free, and returns when all calls
  // have.
  virtual void RunOnThreads(int64_t runners, const std::function<void()>& run) = 0;
};

// Memory of the device that goes back to its allocator when the last copy is gone.
using Buffer = std::shared_ptr<void>;

// The framework's allocator of device memory.
class Allocator {
 public:
  virtual ~Allocator() = default;
  // `bytes` bytes aligned to kAlignment. On a GPU a buffer may be released while kernels that use
  // it are under way on the call's stream: the memory is then given to later work of that stream
  // only. Errors: ResourceExhausted.
  virtual Status Allocate(int64_t bytes, Buffer* buffer) = 0;
};

// The CPU backend uses pool, the CUDA backend stream and allow_tf32.
struct ExecutionContext {
  ThreadPool* pool = nullptr;
  void* stream = nullptr;          // cudaStream_t
  bool allow_tf32 = false;         // float32 products may use TensorFloat-32
  Allocator* allocator = nullptr;  // what Runner takes memory from
  // Told how each batch is computed, where somebody wants to know.
  std::function<void(const std::string&)> log;
};

}  // namespace ft
