#include "tf_ops/cpu/thread_pool.h"

namespace ft::cpu {

StdThreadPool::StdThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { Worker(); });
}

StdThreadPool::~StdThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void StdThreadPool::Drain() {
  for (int64_t i = next_.fetch_add(1); i < num_tasks_; i = next_.fetch_add(1)) (*work_)(i);
}

void StdThreadPool::Worker() {
  int64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    lock.unlock();
    Drain();
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

void StdThreadPool::ParallelFor(int64_t num_tasks, const std::function<void(int64_t)>& work) {
  std::lock_guard<std::mutex> one_caller(caller_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    num_tasks_ = num_tasks;
    next_ = 0;
    busy_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  wake_.notify_all();
  Drain();
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return busy_ == 0; });
}

}  // namespace ft::cpu
