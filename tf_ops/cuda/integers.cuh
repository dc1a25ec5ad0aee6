// Numbers of 8 bits on the device: the integers of INT8 (docs/int8.md), and float8 (docs/fp8.md).
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

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

using Float8 = __nv_fp8_e4m3;

// Two neighbours as float8, half to even, at most 448; NaN stays.
__device__ __forceinline__ uint16_t PackFloat8(float x0, float x1) {
  return __nv_cvt_float2_to_fp8x2(make_float2(x0, x1), __NV_SATFINITE, __NV_E4M3);
}

// One number as Q, int8_t or Float8.
template <typename Q>
__device__ __forceinline__ Q RoundTo(float x) {
  if constexpr (std::is_same_v<Q, int8_t>) {
    return static_cast<int8_t>(RoundToInt8(x));
  } else {
    Q q;
    q.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    return q;
  }
}

// The two float8 in the lower bytes as two halves, exactly.
__device__ __forceinline__ uint32_t Float8PairToHalves(uint32_t pair) {
  uint32_t halves = 0;
#if __CUDA_ARCH__ >= 890
  asm volatile("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(pair)));
#endif
  return halves;
}

// Two neighbours as the type that `is_float8` says. The branch is the same for all threads.
__device__ __forceinline__ uint16_t PackPair(bool is_float8, float x0, float x1) {
  return is_float8 ? PackFloat8(x0, x1) : PackIntegers(x0, x1);
}

// x * scale as Q.
template <typename Q, int kCount>
__device__ __forceinline__ Piece<Q, kCount> RoundPiece(const float (&x)[kCount], float scale) {
  Piece<Q, kCount> piece;
  if constexpr (!std::is_same_v<Q, int8_t> && kCount % 2 == 0) {
    uint16_t pairs[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount; i += 2) pairs[i / 2] = PackFloat8(x[i] * scale, x[i + 1] * scale);
    memcpy(piece.v, pairs, sizeof(pairs));
  } else if constexpr (kCount % 4 == 0) {
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
    for (int i = 0; i < kCount; ++i) piece.v[i] = RoundTo<Q>(x[i] * scale);
  }
  return piece;
}

// What products of Q add up to: exactly, for integers.
template <typename Q>
using SumOf = std::conditional_t<std::is_same_v<Q, int8_t>, int, float>;

// d[16,8] += a[16,32] b[32,8] of integers. Registers hold four neighbouring k each, and lie as
// MultiplyAdd's for 16-bit types do, with pairs of bytes in place of numbers.
__device__ __forceinline__ void MultiplyAddBytes(int (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  // The upper and the lower eight rows, the first and the second sixteen k.
  const uint32_t b[2] = {b0, b1};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};\n"
                 : "+r"(d[i % 2 * 2]), "+r"(d[i % 2 * 2 + 1])
                 : "r"(a[i]), "r"(b[i / 2]));
  }
#endif
}

// The same of float8.
__device__ __forceinline__ void MultiplyAddBytes(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // no kernel of float8 is chosen there
#endif
}

// What tensor cores take of 16 neighbouring bytes of a row: those, or halves in place of float8,
// which compute capability 9.0 multiplies as halves anyway, and makes of it for each product anew.
template <typename Q>
struct ByteOperand;
template <>
struct ByteOperand<int8_t> {
  static constexpr int kWords = 4;
  static __device__ __forceinline__ void From(const uint4& bytes, uint32_t (&words)[kWords]) {
    words[0] = bytes.x;
    words[1] = bytes.y;
    words[2] = bytes.z;
    words[3] = bytes.w;
  }
  static __device__ __forceinline__ void MultiplyAdd(int (&d)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    MultiplyAddBytes(d, a, b0, b1);
  }
};
template <>
struct ByteOperand<Float8> {
  static constexpr int kWords = 8;
  static __device__ __forceinline__ void From(const uint4& bytes, uint32_t (&words)[kWords]) {
    const uint32_t fours[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[2 * i] = Float8PairToHalves(fours[i] & 0xffff);
      words[2 * i + 1] = Float8PairToHalves(fours[i] >> 16);
    }
  }
  static __device__ __forceinline__ void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
    cuda::MultiplyAdd<half>(d, a, b0, b1);
  }
};

}  // namespace cuda
}  // namespace ft
