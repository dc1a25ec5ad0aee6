// A pool of std::threads for tests and tools; inside TensorFlow its own pool is used.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "tf_ops/core/encoder.h"

namespace ft::cpu {

class StdThreadPool : public ThreadPool {
 public:
  explicit StdThreadPool(int num_threads);
  ~StdThreadPool() override;
  int num_threads() const override { return static_cast<int>(threads_.size()) + 1; }
  // One caller at a time; others wait.
  void ParallelFor(int64_t num_tasks, const std::function<void(int64_t)>& work) override;

 private:
  void Worker();
  void Drain();

  std::mutex caller_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t num_tasks_ = 0;
  std::atomic<int64_t> next_{0};
  int64_t generation_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ft::cpu
