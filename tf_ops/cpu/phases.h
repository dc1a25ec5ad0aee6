// Work in phases, on all threads of a pool with a single ParallelFor.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "tf_ops/core/execution.h"

namespace ft::cpu {

// Runs phases one after the other. Whoever is there takes the next task, and no phase waits for a
// thread that has not come. (ParallelFor itself returns when every thread has come: TensorFlow's
// waits for all that it has scheduled.)
class Phases {
 public:
  using Task = std::function<void(int64_t task, int worker)>;

  void Add(int64_t num_tasks, Task task) {
    if (num_tasks > 0) phases_.push_back({num_tasks, std::move(task)});
  }

  void Run(ThreadPool* pool) {
    std::vector<Progress> progress(phases_.size());
    pool->ParallelFor(pool->num_threads(), [&](int64_t worker) {
      for (size_t p = 0; p < phases_.size(); ++p) {
        Progress& state = progress[p];
        const Phase& phase = phases_[p];
        while (true) {
          const int64_t task = state.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= phase.num_tasks) break;
          phase.task(task, static_cast<int>(worker));
          state.done.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; state.done.load(std::memory_order_acquire) < phase.num_tasks; ++spins) {
          if (spins > 4096) {
            std::this_thread::yield();
          } else {
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
          }
        }
      }
    });
  }

 private:
  struct Phase {
    int64_t num_tasks;
    Task task;
  };
  struct alignas(64) Progress {
    std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  std::vector<Phase> phases_;
};

}  // namespace ft::cpu
