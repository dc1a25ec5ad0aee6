// The temporary memory of one call.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

struct WorkerScratch {
  float* sums;   // [block rows, H]
  char* hidden;  // [block rows, H]: after the attention's layer norm
  char* inner;   // [block rows, InnerStride]
  char* attention;
};

struct Workspace {
  char* x;        // [T,H]: a layer's input
  char* qkv;      // [T,3H]; attention writes its context over the queries
  int32_t* keys;  // [B]: keys to attend to; -1: all that exist, under the mask
  bool by_rows;   // tasks are blocks of rows; else blocks of columns, with whole-batch scratch
  int64_t num_tiles, num_blocks;  // blocks of rows are dealt whole tiles, equally but for one
  WorkerScratch whole;            // not by_rows
  std::vector<WorkerScratch> workers;
  int64_t bytes;
};

// Row stride of the inner activations, padded by a cache line's worth of columns: rows do not fall
// on the same cache sets.
inline int64_t InnerStride(int64_t columns) { return columns + 32; }

// Lays out what a batch needs in `base`; with null it counts.
Workspace LayOutWorkspace(const EncoderConfig& config, const Primitives& primitives,
                          const EncoderBatch& batch, int64_t num_threads, void* base);

}  // namespace ft::cpu
