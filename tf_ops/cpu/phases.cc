#include "tf_ops/cpu/phases.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "tf_ops/cpu/cpu_quota.h"

namespace ft::cpu {
namespace {

// How long a thread looks out for the end of a phase before it sleeps: to be woken takes tens of
// microseconds, but a thread that looks out takes a CPU from whoever could work on it (another
// session, or the thread that it waits for). After the first part it lets those have the CPU that
// are ready to run.
constexpr std::chrono::microseconds kAwake{200}, kAlone{20};

inline void Pause() {
#ifdef __x86_64__
  for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
#endif
}

// What is done of one phase.
class Progress {
 public:
  // The next task's number.
  int64_t Take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  void Finish(int64_t num_tasks) {
    // In one order with the two lines of Sleep: either the sleeper is seen here, or the end there.
    if (done_.fetch_add(1) + 1 < num_tasks || num_sleepers_.load() == 0) return;
    // A sleeper that has found the phase unfinished holds the lock until it can be woken.
    std::lock_guard<std::mutex> lock(mutex_);
    all_done_.notify_all();
  }

  void Wait(int64_t num_tasks) {
    using Clock = std::chrono::steady_clock;
    if (done_.load(std::memory_order_acquire) >= num_tasks) return;
    const Clock::time_point begin = Clock::now();
    while (done_.load(std::memory_order_acquire) < num_tasks) {
      const Clock::duration waited = Clock::now() - begin;
      if (waited > kAwake) {
        Sleep(num_tasks);
      } else if (waited > kAlone) {
        std::this_thread::yield();
      }
      Pause();
    }
  }

 private:
  void Sleep(int64_t num_tasks) {
    std::unique_lock<std::mutex> lock(mutex_);
    num_sleepers_.fetch_add(1);
    all_done_.wait(lock, [&] { return done_.load() >= num_tasks; });
    num_sleepers_.fetch_sub(1);
  }

  // On lines of their own, as threads that wait read one while others write the other.
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> num_sleepers_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

}  // namespace

int NumWorkers(const ThreadPool& pool) {
  const int quota = CpuQuota();
  return quota > 0 ? std::min(pool.num_threads(), quota) : pool.num_threads();
}

void Phases::Run(ThreadPool* pool) const {
  std::vector<Progress> progress(phases_.size());
  pool->ParallelFor(NumWorkers(*pool), [&](int64_t worker) {
    for (size_t p = 0; p < phases_.size(); ++p) {
      const Phase& phase = phases_[p];
      for (int64_t task; (task = progress[p].Take()) < phase.num_tasks;) {
        phase.task(task, static_cast<int>(worker));
        progress[p].Finish(phase.num_tasks);
      }
      progress[p].Wait(phase.num_tasks);
    }
  });
}

}  // namespace ft::cpu
