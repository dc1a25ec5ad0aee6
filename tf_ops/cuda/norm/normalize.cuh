// The mean and the variance of rows in registers.
#pragma once

#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {

// x = (x - mean) / sqrt(variance + epsilon) of a row of `hidden` numbers whose sum over this thread
// is `sum`. Thread `thread` of the kThreads that own it holds the kSize columns from (thread + i *
// kThreads) * kSize on in x[i]. The variance is that of the differences from the mean.
template <int kThreads, int kVectors, int kSize>
__device__ __forceinline__ void NormalizeRow(float sum, int thread, int hidden, float epsilon,
                                             float (&scratch)[2][kThreads / 32],
                                             float (&x)[kVectors][kSize]) {
  const float mean = BlockSum<kThreads>(sum, scratch[0]) / hidden;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if ((thread + i * kThreads) * kSize >= hidden) continue;
#pragma unroll
    for (int e = 0; e < kSize; ++e) squares += (x[i][e] - mean) * (x[i][e] - mean);
  }
  const float scale = rsqrtf(BlockSum<kThreads>(squares, scratch[1]) / hidden + epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[i][e] = (x[i][e] - mean) * scale;
  }
}

}  // namespace cuda
}  // namespace ft
