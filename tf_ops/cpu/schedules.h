// How the layers are dealt to threads: two ways, each a list of phases.
#pragma once

#include "tf_ops/cpu/layer_steps.h"
#include "tf_ops/cpu/phases.h"

namespace ft::cpu {

// Attention's tasks: heads, or parts of their queries where there are few.
struct AttentionTasks {
  int64_t splits, count;
  AttentionTasks(const LayerSteps& steps, int64_t num_threads);
};

// Many rows: a task takes a block of rows through projection, feed-forward network and the next
// layer's QKV, so that activations stay in its cache.
void ScheduleByRows(const LayerSteps& steps, int64_t num_threads, Phases* phases);

// Few rows: a task takes some columns of one product for all rows, so that each weight is read
// once.
void ScheduleByColumns(const LayerSteps& steps, int64_t num_threads, Phases* phases);

}  // namespace ft::cpu
