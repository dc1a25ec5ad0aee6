// What PyTorch's masks say, as lengths or as an encoder's mask.
#include <algorithm>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/rows/seen_keys.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that share the queries of a sequence.
constexpr int kParts = 16;

// Whether a key is seen; notes in *flags a float that says neither.
__device__ __forceinline__ bool IsSeen(const SeenKeys& seen, int64_t sequence, int64_t query,
                                       int64_t key, int* flags) {
  const int64_t place =
      sequence * seen.batch_stride + query * seen.query_stride + key * seen.key_stride;
  if (!seen.is_float) return static_cast<const uint8_t*>(seen.data)[place] != 0;
  const float added = static_cast<const float*>(seen.data)[place];
  if (added != 0.0f && !(added <= kNotSeen)) *flags |= kHasBias;
  return added == 0.0f;
}

// Block (part, sequence). Part 0 looks at the first query, too; `summary` begins as zeros.
__global__ void __launch_bounds__(kThreads)
    SummarizeSeenKeysKernel(const SeenKeys seen, int32_t* __restrict__ summary) {
  __shared__ int keys, num_seen;
  const int64_t sequence = blockIdx.y;
  int flags = 0;
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) keys = num_seen = 0;
    __syncthreads();
    for (int64_t key = threadIdx.x; key < seen.seq_len; key += kThreads) {
      if (IsSeen(seen, sequence, 0, key, &flags)) {
        atomicMax(&keys, static_cast<int>(key) + 1);
        atomicAdd(&num_seen, 1);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      summary[2 * sequence] = keys;
      if (num_seen != keys) flags |= kHasGaps;
    }
  }
  for (int64_t query = 1 + blockIdx.x; query < seen.queries; query += gridDim.x) {
    for (int64_t key = threadIdx.x; key < seen.seq_len; key += kThreads) {
      const bool first = IsSeen(seen, sequence, 0, key, &flags);
      if (IsSeen(seen, sequence, query, key, &flags) != first) flags |= kQueriesDiffer;
    }
  }
  if (flags != 0) atomicOr(&summary[2 * sequence + 1], flags);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    WriteMaskKernel(const SeenKeys seen, T* __restrict__ mask) {
  const int64_t rows = seen.batch_size * seen.seq_len;
  int flags = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t sequence = row / seen.seq_len;
    const int64_t query = seen.queries == 1 ? 0 : row % seen.seq_len;
    for (int64_t key = threadIdx.x; key < seen.seq_len; key += kThreads) {
      const bool is_seen = IsSeen(seen, sequence, query, key, &flags);
      mask[row * seen.seq_len + key] = FromFloat<T>(is_seen ? 1.0f : 0.0f);
    }
  }
}

}  // namespace

Status LaunchSummarizeSeenKeys(const SeenKeys& seen, int32_t* summary,
                               const LaunchContext& context) {
  if (seen.batch_size > 65535) {
    return Unimplemented("attention_mask has ", seen.batch_size, " sequences; at most 65535");
  }
  FT_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(summary, 0, seen.batch_size * 8, context.stream));
  const int64_t parts = std::min<int64_t>(kParts, std::max<int64_t>(1, seen.queries - 1));
  return Launch(SummarizeSeenKeysKernel, Grid{parts, seen.batch_size}, kThreads, 0, context, seen,
                summary);
}

Status LaunchWriteMask(const SeenKeys& seen, DataType dtype, void* mask,
                       const LaunchContext& context) {
  constexpr int64_t kMaxBlocks = 1 << 20;
  const int64_t rows = seen.batch_size * seen.seq_len;
  if (rows == 0) return OkStatus();
  return DispatchType(dtype, [&](auto type) {
    using T = decltype(type);
    return Launch(WriteMaskKernel<T>, Grid{std::min(rows, kMaxBlocks)}, kThreads, 0, context, seen,
                  static_cast<T*>(mask));
  });
}

}  // namespace cuda
}  // namespace ft
