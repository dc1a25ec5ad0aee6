// The temporary memory of one call.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

// Rows of activations, of elements of `bytes` bytes.
struct Rows {
  char* data = nullptr;
  int64_t stride = 0, bytes = 0;
  char* At(int64_t row, int64_t column = 0) const { return data + (row * stride + column) * bytes; }
};

struct WorkerScratch {
  float* sums;      // [block rows, H]
  Rows hidden;      // H columns: after the attention's layer norm; INT8 mode 2 has no use for it
  Rows hidden_int;  // INT8: the integers of that
  Rows inner;       // the inner layer's columns that are alive at once; INT8: integers
  void* attention;
  void* gemm;  // of one call of a product

  // The scratch of the rows from `row` on.
  WorkerScratch From(int64_t row) const {
    WorkerScratch s = *this;
    s.sums += row * hidden.stride;
    for (Rows* rows : {&s.hidden, &s.hidden_int, &s.inner}) {
      if (rows->data != nullptr) rows->data = rows->At(row);
    }
    return s;
  }
};

struct Workspace {
  Rows x;         // H columns: a layer's input
  Rows x_int;     // INT8: the integers of that
  Rows qkv;       // 3H columns
  Rows context;   // H columns: attention's result, over the queries; INT8: integers
  int32_t* keys;  // [B]: keys to attend to; -1: all that exist, under the mask
  bool by_rows;   // tasks are blocks of rows; else parts of a product, with whole-batch scratch
  // Blocks of rows are dealt units of some rows each, equally but for one: by_rows tiles of the
  // products, else single rows, as then layer norms alone are done in blocks.
  int64_t unit_rows, num_units, num_blocks;
  WorkerScratch whole;  // not by_rows
  std::vector<WorkerScratch> workers;
  int64_t bytes;

  // Not by_rows: what `worker` computes the rows from `row` on with.
  WorkerScratch From(int64_t row, int worker) const {
    WorkerScratch s = whole.From(row);
    s.gemm = workers[worker].gemm;
    return s;
  }
};

// Lays out what a batch needs in `base`; with null it counts.
Workspace LayOutWorkspace(const EncoderConfig& config, const Primitives& primitives,
                          const EncoderBatch& batch, int64_t num_threads, void* base);

}  // namespace ft::cpu
