#include "tf_ops/cpu/phases.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>

#include "tf_ops/cpu/cpu_quota.h"
#include "tf_ops/cpu/cpu_seat.h"

namespace ft::cpu {
namespace {

using Clock = std::chrono::steady_clock;

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

// Asks the second-level cache for some lines of what is wanted, and takes them off it.
void Fetch(Phases::Bytes* wanted) {
  constexpr int64_t kLine = 64, kLines = 16;
  for (int64_t i = 0; i < kLines && wanted->size > 0; ++i) {
    __builtin_prefetch(wanted->data, 0, 2);
    wanted->data += kLine;
    wanted->size -= kLine;
  }
}

// What is done of one phase.
class Progress {
 public:
  void Init(int64_t num_parts, int64_t tasks_per_part, int64_t num_workers) {
    left_ = std::vector<std::atomic<int64_t>>(num_parts);
    for (std::atomic<int64_t>& left : left_) left.store(tasks_per_part, std::memory_order_relaxed);
    const int64_t num_tasks = num_parts * tasks_per_part;
    shares_ = std::vector<Share>(num_workers);
    for (int64_t worker = 0; worker < num_workers; ++worker) {
      shares_[worker].next = num_tasks * worker / num_workers;
      shares_[worker].end = num_tasks * (worker + 1) / num_workers;
    }
  }

  // A task that nobody has begun, of the worker's own if there is one; -1 if there is none.
  int64_t Take(int64_t worker) {
    const int64_t num_workers = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < num_workers; ++i) {
      Share& share = shares_[(worker + i) % num_workers];
      // Only reads what has been taken: a write would take the line from all others.
      if (share.next.load(std::memory_order_relaxed) >= share.end) continue;
      const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.end) return task;
    }
    return -1;
  }

  // One more task of the part is done.
  void Finish(int64_t part) {
    // In one order with the two lines of Sleep: either the sleeper is seen here, or the end there.
    if (left_[part].fetch_sub(1) > 1 || num_sleepers_.load() == 0) return;
    // A sleeper that has found the part unfinished holds the lock until it can be woken.
    std::lock_guard<std::mutex> lock(mutex_);
    part_done_.notify_all();
  }

  // Until all tasks of the parts [first, last) are done. Meanwhile asks the caches for `wanted`.
  void Wait(int64_t first, int64_t last, Phases::Bytes wanted) {
    if (AreDone(first, last)) return;
    const Clock::time_point begin = Clock::now();
    while (!AreDone(first, last)) {
      if (wanted.size > 0) {
        Fetch(&wanted);
        continue;
      }
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

  // The tasks from `next` on that a worker has not begun, on a line of its own, as each worker
  // writes its own all the time.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;
  std::vector<std::atomic<int64_t>> left_;  // tasks of each part
  std::atomic<int> num_sleepers_{0};
  std::mutex mutex_;
  std::condition_variable part_done_;
};

// Which workers have come. One that Linux has put on the CPU of another cannot run, nor take a CPU
// of its own (CpuSeat), before that one lets it or the next tick: so while some are missing, those
// that are there let others run a few times.
class Arrivals {
 public:
  explicit Arrivals(int num_workers) : num_missing_(num_workers) {}

  // One worker's, who has just come.
  class Worker {
   public:
    explicit Worker(Arrivals* all) : all_(all), begin_(Clock::now()) { --all->num_missing_; }

    // To be called now and then.
    void LetOthersCome() {
      if (num_turns_ == kNumTurns || all_->num_missing_.load(std::memory_order_relaxed) == 0) {
        return;
      }
      // Few, as who else runs on this CPU may keep it for milliseconds.
      constexpr std::chrono::microseconds kTurns[kNumTurns] = {std::chrono::microseconds{0},
                                                               std::chrono::microseconds{100},
                                                               std::chrono::microseconds{500}};
      if (Clock::now() - begin_ < kTurns[num_turns_]) return;
      ++num_turns_;
      std::this_thread::yield();
    }

   private:
    static constexpr int kNumTurns = 3;
    Arrivals* const all_;
    const Clock::time_point begin_;
    int num_turns_ = 0;
  };

 private:
  std::atomic<int> num_missing_;
};

}  // namespace

int NumWorkers(const ThreadPool& pool) {
  const int quota = CpuQuota();
  return quota > 0 ? std::min(pool.num_threads(), quota) : pool.num_threads();
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

void Phases::Add(std::shared_ptr<const RowParts> parts, int64_t tasks_per_part, PartTask task,
                 Ahead ahead) {
  if (parts->count() == 0 || tasks_per_part == 0) return;
  phases_.push_back({std::move(parts), tasks_per_part, std::move(task), std::move(ahead)});
}

void Phases::Add(int64_t num_tasks, Task task) {
  constexpr int64_t kAllRows = std::numeric_limits<int64_t>::max();
  Add(std::make_shared<const RowParts>(RowParts{{0, kAllRows}}), num_tasks,
      [task = std::move(task)](int64_t, int64_t index, int worker) { task(index, worker); });
}

void Phases::Run(ThreadPool* pool) const {
  const int num_workers = NumWorkers(*pool);
  std::vector<Progress> progress(phases_.size());
  for (size_t p = 0; p < phases_.size(); ++p) {
    progress[p].Init(phases_[p].parts->count(), phases_[p].tasks_per_part, num_workers);
  }
  Arrivals arrivals(num_workers);
  pool->ParallelFor(num_workers, [&](int64_t worker) {
    const CpuSeat seat;
    Arrivals::Worker arrival(&arrivals);
    for (size_t p = 0; p < phases_.size(); ++p) {
      arrival.LetOthersCome();
      const Phase& phase = phases_[p];
      for (int64_t task; (task = progress[p].Take(worker)) >= 0;) {
        const int64_t part = task / phase.tasks_per_part, index = task % phase.tasks_per_part;
        if (p > 0) {
          const auto [first, last] = phases_[p - 1].Overlap(*phase.parts, part);
          progress[p - 1].Wait(first, last, phase.ahead ? phase.ahead(index) : Bytes{});
        }
        phase.task(part, index, static_cast<int>(worker));
        progress[p].Finish(part);
      }
    }
  });
}

}  // namespace ft::cpu
