// Which keys a mask lets through: most masks say no more than a length, and attention over a number
// of keys is faster than attention with a mask.
#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Block b * kMaskParts + part: every kMaskParts-th row of sequence b. A warp per row; kVector
// elements a load.
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads)
    FindMaskKeysKernel(const AttentionParams p, int32_t* __restrict__ mask_keys) {
  __shared__ int first_other;
  const int sequence = blockIdx.x / kMaskParts, part = blockIdx.x % kMaskParts;
  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  const T* const mask = static_cast<const T*>(p.mask) +
                        static_cast<int64_t>(sequence) * p.max_seq_len * p.max_seq_len;
  if (threadIdx.x == 0) first_other = range.keys;
  __syncthreads();
  for (int key = threadIdx.x; key < range.keys; key += kThreads) {
    if (ToFloat(mask[key]) != 1.f) {
      atomicMin(&first_other, key);
      break;
    }
  }
  __syncthreads();
  const int keys = first_other;
  bool same = true;
  for (int row = part + threadIdx.x / 32 * kMaskParts; row < range.rows && same;
       row += kThreads / 32 * kMaskParts) {
    const T* const values = mask + static_cast<int64_t>(row) * p.max_seq_len;
    for (int key = threadIdx.x % 32 * kVector; key < range.keys; key += 32 * kVector) {
      alignas(16) T v[kVector];
      if (kVector == 1) {
        v[0] = values[key];
      } else {
        *reinterpret_cast<uint4*>(v) = *reinterpret_cast<const uint4*>(values + key);
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        same = same && (key + e >= range.keys || ToFloat(v[e]) == (key + e < keys ? 1.f : 0.f));
      }
    }
  }
  same = __syncthreads_and(same);
  // A mask that hides all keys leaves them equally weighted, unlike no keys.
  if (threadIdx.x == 0) mask_keys[blockIdx.x] = same && (keys > 0 || range.keys == 0) ? keys : -1;
}

}  // namespace

bool FindsMaskKeys(const AttentionArgs& args) {
  // H100, BERT-base, one layer and twelve: from here on it gains (benchmarks/gpu_profile.md).
  constexpr int64_t kMinLength = 128;
  return args.mask != nullptr && args.max_seq_len >= kMinLength &&
         args.batch_size <= INT32_MAX / kMaskParts;
}

Status LaunchFindMaskKeys(const AttentionArgs& args, int32_t* mask_keys,
                          const LaunchContext& context) {
  const AttentionParams params = MakeAttentionParams(args);
  return DispatchType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kVector = Vector16<T>::kSize;
    const bool aligned = args.max_seq_len % kVector == 0 &&
                         reinterpret_cast<uintptr_t>(args.mask) % sizeof(Vector16<T>) == 0;
    return Launch(aligned ? FindMaskKeysKernel<T, kVector> : FindMaskKeysKernel<T, 1>,
                  Grid{args.batch_size * kMaskParts}, kThreads, 0, context, params, mask_keys);
  });
}

}  // namespace cuda
}  // namespace ft
