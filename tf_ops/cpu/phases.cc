#include "tf_ops/cpu/phases.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>

#include "tf_ops/cpu/cpu_quota.h"

namespace ft::cpu {
namespace {

// How long a thread looks out for the end of a part before it sleeps: to be woken takes tens of
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
  void Init(int64_t num_parts, int64_t tasks_per_part) {
    left_ = std::vector<std::atomic<int64_t>>(num_parts);
    for (std::atomic<int64_t>& left : left_) left.store(tasks_per_part, std::memory_order_relaxed);
  }

  // The next task's number.
  int64_t Take() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // One more task of the part is done.
  void Finish(int64_t part) {
    // In one order with the two lines of Sleep: either the sleeper is seen here, or the end there.
    if (left_[part].fetch_sub(1) > 1 || num_sleepers_.load() == 0) return;
    // A sleeper that has found the part unfinished holds the lock until it can be woken.
    std::lock_guard<std::mutex> lock(mutex_);
    part_done_.notify_all();
  }

  // Until all tasks of the parts [first, last) are done.
  void Wait(int64_t first, int64_t last) {
    using Clock = std::chrono::steady_clock;
    if (AreDone(first, last)) return;
    const Clock::time_point begin = Clock::now();
    while (!AreDone(first, last)) {
      const Clock::duration waited = Clock::now() - begin;
      if (waited > kAwake) {
        Sleep(first, last);
      } else if (waited > kAlone) {
        std::this_thread::yield();
      }
      Pause();
    }
  }

 private:
  bool AreDone(int64_t first, int64_t last) const {
    while (first < last && left_[first].load() == 0) ++first;
    return first >= last;
  }

  void Sleep(int64_t first, int64_t last) {
    std::unique_lock<std::mutex> lock(mutex_);
    num_sleepers_.fetch_add(1);
    part_done_.wait(lock, [&] { return AreDone(first, last); });
    num_sleepers_.fetch_sub(1);
  }

  // On lines of their own, as threads that wait read one while others write the other.
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::vector<std::atomic<int64_t>> left_;  // tasks of each part
  std::atomic<int> num_sleepers_{0};
  std::mutex mutex_;
  std::condition_variable part_done_;
};

}  // namespace

int NumWorkers(const ThreadPool& pool) {
  const int quota = CpuQuota();
  return quota > 0 ? std::min(pool.num_threads(), quota) : pool.num_threads();
}

std::pair<int64_t, int64_t> Phases::Phase::Find(int64_t task) const {
  if (order == Order::kInTurn) return {task % parts->count(), task / parts->count()};
  return {task / tasks_per_part, task % tasks_per_part};
}

std::pair<int64_t, int64_t> Phases::Phase::Overlap(const RowParts& others, int64_t part) const {
  const std::vector<int64_t>& edges = parts->edges;
  const int64_t begin = others.edges[part], end = others.edges[part + 1];
  // The part that has the row `begin` is before the first edge behind it, the part that has the
  // row before `end` begins at the last edge before that.
  const auto first = std::upper_bound(edges.begin(), edges.end(), begin) - edges.begin() - 1;
  const auto last = std::lower_bound(edges.begin(), edges.end(), end) - edges.begin();
  return {first, std::min<int64_t>(last, parts->count())};
}

void Phases::Add(std::shared_ptr<const RowParts> parts, int64_t tasks_per_part, Order order,
                 PartTask task) {
  if (parts->count() == 0 || tasks_per_part == 0) return;
  phases_.push_back({std::move(parts), tasks_per_part, order, std::move(task)});
}

void Phases::Add(int64_t num_tasks, Task task) {
  constexpr int64_t kAllRows = std::numeric_limits<int64_t>::max();
  Add(std::make_shared<const RowParts>(RowParts{{0, kAllRows}}), num_tasks, Order::kPartByPart,
      [task = std::move(task)](int64_t, int64_t index, int worker) { task(index, worker); });
}

void Phases::Run(ThreadPool* pool) const {
  std::vector<Progress> progress(phases_.size());
  for (size_t p = 0; p < phases_.size(); ++p) {
    progress[p].Init(phases_[p].parts->count(), phases_[p].tasks_per_part);
  }
  pool->ParallelFor(NumWorkers(*pool), [&](int64_t worker) {
    for (size_t p = 0; p < phases_.size(); ++p) {
      const Phase& phase = phases_[p];
      for (int64_t task; (task = progress[p].Take()) < phase.num_tasks();) {
        const auto [part, index] = phase.Find(task);
        if (p > 0) {
          const auto [first, last] = phases_[p - 1].Overlap(*phase.parts, part);
          progress[p - 1].Wait(first, last);
        }
        phase.task(part, index, static_cast<int>(worker));
        progress[p].Finish(part);
      }
    }
  });
}

}  // namespace ft::cpu
