// Partial sums of a product, which a layer norm adds up.
#pragma once

#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {

// Adds kSize neighbours of each of `count` vectors, `stride` elements apart, to `sums`, in their
// order. kAhead vectors are on their way before the first is added, without a branch between them;
// those that there are not are zeros. 1: one after the other, which takes fewer registers.
template <int kAhead, typename Sum, int kSize>
__device__ __forceinline__ void AddPartials(const Sum* first, int count, int64_t stride,
                                            Sum (&sums)[kSize]) {
  static_assert(sizeof(Sum) == 4 && kSize % 4 == 0, "loads of 16 bytes");
  for (int from = 0; from < count; from += kAhead) {
    uint4 parts[kAhead][kSize / 4];
#pragma unroll
    for (int part = 0; part < kAhead; ++part) {
#pragma unroll
      for (int e = 0; e < kSize / 4; ++e) {
        const Sum* const from_part = first + (from + part) * stride + 4 * e;
        if constexpr (kAhead == 1) {
          parts[part][e] = *reinterpret_cast<const uint4*>(from_part);
        } else {
          parts[part][e] = LoadIf(from + part < count, from_part);
        }
      }
    }
#pragma unroll
    for (int part = 0; part < kAhead; ++part) {
#pragma unroll
      for (int e = 0; e < kSize / 4; ++e) {
        Sum four[4];
        memcpy(four, &parts[part][e], sizeof(four));
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[4 * e + i] += four[i];
      }
    }
  }
}

}  // namespace cuda
}  // namespace ft
