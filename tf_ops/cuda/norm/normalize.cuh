// What the kernels of layer norms share: how rows are dealt out, and the mean and the variance of
// rows in registers.
#pragma once

#include "tf_ops/cuda/device_context.h"
#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {

// Who normalizes a row, and when gamma and beta are read.
enum class NormRows {
  kBlock,      // a block, before it waits for the previous kernel: the shortest time for a row
  kEarlyWarp,  // a warp, before it waits
  kWarp,       // a warp, when they are used: that leaves registers for more warps
};

// Vectors of 16 bytes of a row, at most, that a warp takes.
constexpr int64_t kMaxWarpVectors = 256;

// For rows of so many vectors, of elements of this size, as an H100 measured BERT
// (benchmarks/gpu_profile.md).
inline NormRows DealNormRows(int64_t rows, int64_t vectors, int64_t element_bytes,
                             const LaunchContext& context) {
  // Rows of each multiprocessor, at most.
  constexpr int64_t kByBlock = 10, kEarly = 20, kEarlyFloat32 = 16;
  const int64_t early = element_bytes == 4 ? kEarlyFloat32 : kEarly;
  if (rows <= kByBlock * context.num_multiprocessors || vectors > kMaxWarpVectors) {
    return NormRows::kBlock;
  }
  return rows <= early * context.num_multiprocessors ? NormRows::kEarlyWarp : NormRows::kWarp;
}

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
