// Activation in place, quantization, and the transposition and conversion of weights. All pointers
// are device pointers, 16-byte aligned unless said otherwise; all work is put on the context's
// stream, and nothing waits for it.
#pragma once

#include "tf_ops/core/weights.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// x = activation(x), num_elems of dtype, in place.
Status LaunchActivation(DataType dtype, Activation activation, void* x, int64_t num_elems,
                        const LaunchContext& context);

// q[i] = the number of `q_dtype`, int8 or float8, nearest to x[i] * scale[0] (docs/int8.md,
// docs/fp8.md), num_elems of dtype.
Status LaunchQuantize(DataType dtype, const void* x, int64_t num_elems, const float* scale,
                      DataType q_dtype, void* q, const LaunchContext& context);

// x[i], num_elems integers of 8 bits, as float8, in place (no alignment needed).
Status LaunchIntegersToFloat8(void* x, int64_t num_elems, const LaunchContext& context);

// y[i] = x[i], num_elems of dtype.
Status LaunchToFloat(DataType dtype, const void* x, int64_t num_elems, float* y,
                     const LaunchContext& context);

struct TransposeArgs {
  static constexpr int kMaxMatrices = kWeightsPerLayer;
  int num_matrices = 0;
  struct {
    const void* input = nullptr;  // [rows,cols]
    void* output = nullptr;       // [cols,rows]
    int rows = 0, cols = 0;
  } matrices[kMaxMatrices];
};

// Transposes several matrices of elements of `elem_bytes` 1, 2 or 4 bytes (no alignment needed).
Status LaunchTranspose(const TransposeArgs& args, int elem_bytes, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
