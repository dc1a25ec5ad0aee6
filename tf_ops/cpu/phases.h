// Work in phases, on threads of a pool with a single ParallelFor.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "tf_ops/core/execution.h"

namespace ft::cpu {

// How many threads of a pool work at once: no more than Linux lets run, as under a quota of CPU
// time the others would use it up waiting, and all would be stopped until the next period.
int NumWorkers(const ThreadPool& pool);

// Runs phases one after the other. Whoever is there takes the next task, and no phase waits for a
// thread that has not come. (ParallelFor itself returns when every thread has come: TensorFlow's
// waits for all that it has scheduled.)
class Phases {
 public:
  // `worker` is in [0, NumWorkers(pool)).
  using Task = std::function<void(int64_t task, int worker)>;

  void Add(int64_t num_tasks, Task task) {
    if (num_tasks > 0) phases_.push_back({num_tasks, std::move(task)});
  }

  // On NumWorkers(*pool) threads.
  void Run(ThreadPool* pool) const;

 private:
  struct Phase {
    int64_t num_tasks;
    Task task;
  };
  std::vector<Phase> phases_;
};

}  // namespace ft::cpu
