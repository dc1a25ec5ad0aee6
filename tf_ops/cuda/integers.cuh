// Integers of INT8 (docs/int8.md) on the device.
#pragma once

#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {

__device__ __forceinline__ float ToFloat(int8_t x) { return static_cast<float>(x); }

// The integer nearest to x, half to even, within the range; NaN becomes -128.
__device__ __forceinline__ int RoundToInt8(float x) {
  return __float2int_rn(fminf(fmaxf(x, -128.f), 127.f));
}

// kCount neighbours that are loaded and stored at once: a power of two, aligned to their size.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Piece {
  T v[kCount];
};

// As RoundToInt8, but numbers above the range stay there: for what saturates when it is packed.
__device__ __forceinline__ int RoundBelowInt8(float x) { return __float2int_rn(fmaxf(x, -128.f)); }

// Integers as bytes, saturated, the first in the lowest: x0 and x1, and above them `higher`.
__device__ __forceinline__ uint32_t PackBytes(int x0, int x1, uint32_t higher) {
  uint32_t bytes;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(x1), "r"(x0), "r"(higher));
  return bytes;
}

// Two neighbours, rounded, as bytes.
__device__ __forceinline__ uint16_t PackIntegers(float x0, float x1) {
  return static_cast<uint16_t>(PackBytes(RoundBelowInt8(x0), RoundBelowInt8(x1), 0));
}

// x * scale, rounded.
template <int kCount>
__device__ __forceinline__ Piece<int8_t, kCount> ToIntegers(const float (&x)[kCount], float scale) {
  Piece<int8_t, kCount> piece;
  if constexpr (kCount % 4 == 0) {
    uint32_t words[kCount / 4];
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint32_t higher =
          PackBytes(RoundBelowInt8(x[i + 2] * scale), RoundBelowInt8(x[i + 3] * scale), 0);
      words[i / 4] =
          PackBytes(RoundBelowInt8(x[i] * scale), RoundBelowInt8(x[i + 1] * scale), higher);
    }
    memcpy(piece.v, words, sizeof(words));
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) piece.v[i] = static_cast<int8_t>(RoundToInt8(x[i] * scale));
  }
  return piece;
}

}  // namespace cuda
}  // namespace ft
