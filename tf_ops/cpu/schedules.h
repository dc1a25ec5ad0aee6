// How the layers are dealt to threads: two ways, each a list of phases.
#pragma once

#include "tf_ops/cpu/layer_steps.h"
#include "tf_ops/cpu/phases.h"

namespace ft::cpu {

// Many rows: a task takes a block of rows through projection, feed-forward network and the next
// layer's QKV, so that activations stay in its cache.
void ScheduleByRows(const LayerSteps& steps, int64_t num_threads, Phases* phases);

// One product of the whole batch in tasks of `rows` rows by `columns` columns, or less at the
// edges.
struct Grid {
  int64_t rows, columns;
  Grid(const Primitives& primitives, int64_t num_rows, int64_t num_columns, int64_t num_threads);
};

// Few rows for each thread: every step is a phase of its own, and the tasks of a product are some
// rows by some columns, so that what a thread reads of activations and weights is little.
void ScheduleByGrid(const LayerSteps& steps, int64_t num_threads, Phases* phases);

}  // namespace ft::cpu
