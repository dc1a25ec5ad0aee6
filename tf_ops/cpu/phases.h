// Work in phases, on threads of a pool with a single ParallelFor.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tf_ops/core/execution.h"

namespace ft::cpu {

// How many threads of a pool work at once: no more than Linux lets run, as under a quota of CPU
// time the others would use it up waiting, and all would be stopped until the next period.
int NumWorkers(const ThreadPool& pool);

// The rows of a batch, cut into parts: part i has the rows [edges[i], edges[i + 1]).
struct RowParts {
  std::vector<int64_t> edges = {0};
  int64_t count() const { return static_cast<int64_t>(edges.size()) - 1; }
};

// Runs phases in the order in which they were added. A worker takes a task, and waits until the
// phase before has finished the rows that the task is about: it waits for no rows that are not its
// own, nor for a thread that has not come. (ParallelFor itself returns when every thread has come:
// TensorFlow's waits for all that it has scheduled.)
//
// A phase's tasks are dealt to the workers in the order of their rows, to each as many as to the
// others. A worker takes its own first, so that it is at the same rows from phase to phase and
// finds them in its cache, and then those that others have not begun.
class Phases {
 public:
  // `worker` is in [0, NumWorkers(pool)).
  using Task = std::function<void(int64_t task, int worker)>;
  // Task `index` of those of a part.
  using PartTask = std::function<void(int64_t part, int64_t index, int worker)>;
  // Memory that task `index` of any part reads first and no phase writes: a worker that waits asks
  // the caches for it meanwhile.
  struct Bytes {
    const char* data = nullptr;
    int64_t size = 0;
  };
  using Ahead = std::function<Bytes(int64_t index)>;

  // `tasks_per_part` tasks for each part. Every phase that has parts must cut the same rows; those
  // that cut them alike may share the parts.
  void Add(std::shared_ptr<const RowParts> parts, int64_t tasks_per_part, PartTask task,
           Ahead ahead = nullptr);

  // A phase that waits for all rows of the phase before, and is waited for as a whole.
  void Add(int64_t num_tasks, Task task);

  // On NumWorkers(*pool) threads.
  void Run(ThreadPool* pool) const;

 private:
  struct Phase {
    std::shared_ptr<const RowParts> parts;
    int64_t tasks_per_part;
    PartTask task;
    Ahead ahead;

    // The parts [first, last) that have some of the rows of `part` of another phase.
    std::pair<int64_t, int64_t> Overlap(const RowParts& others, int64_t part) const;
  };
  std::vector<Phase> phases_;
};

}  // namespace ft::cpu
