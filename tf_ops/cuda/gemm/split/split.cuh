// float32 numbers as pairs of halves on the device: see split_gemm.h.
#pragma once

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/split/split_gemm.h"

namespace ft {
namespace cuda {

// The powers of two between a vector and its halves.
struct SplitScale {
  int exponent;  // of the largest finite magnitude

  // Brings the largest magnitude to between 2^14 and 2^15, so that halves hold what is 2^-38 of it.
  __device__ __forceinline__ float to_halves() const { return Power(kLargestExponent - exponent); }
  // With it sums of products of rows of x by vectors of w stand for 2^(2 kLargestExponent) too
  // much.
  __device__ __forceinline__ float of_row() const { return Power(exponent); }
  // Takes that back, so that neither product of the sum with a scale overflows before the result.
  __device__ __forceinline__ float of_channel() const {
    return Power(exponent - 2 * kLargestExponent);
  }

 private:
  static constexpr int kLargestExponent = 14;

  static __device__ __forceinline__ float Power(int exponent) {
    return __int_as_float((exponent + 127) << 23);
  }
};

// `largest` is the largest finite magnitude, or 0.
__device__ __forceinline__ SplitScale MakeSplitScale(float largest) {
  // No scale may leave float32's normal range: vectors below 2^-98 keep fewer bits.
  return {max((__float_as_int(largest) >> 23) - 127, -98)};
}

// The largest finite magnitude of x[kCount], or 0.
template <int kCount>
__device__ __forceinline__ float LargestFinite(const float* x) {
  float largest = 0.f, check = 0.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    largest = fmaxf(largest, fabsf(x[i]));
    check = fmaf(x[i], 0.f, check);
  }
  if (check == 0.f) return largest;
  largest = 0.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (fabsf(x[i]) < INFINITY) largest = fmaxf(largest, fabsf(x[i]));
  }
  return largest;
}

struct Halves {
  half high, low;
};

constexpr float kLeastHalf = 5.9604644775390625e-8f;  // 2^-24, above 0

// x * to_halves = high + low to 22 bits. The rules that let infinities and NaN come out of the
// three products as of one: a number that is not 0 has a high half that is not, of its sign; what
// is not finite lies in the low half, which meets high halves alone.
__device__ __forceinline__ Halves SplitNumber(float x, float to_halves) {
  const float scaled = x * to_halves;
  if (!(fabsf(scaled) < INFINITY)) return {__float2half_rn(0.f), __float2half_rn(scaled)};
  half high = __float2half_rn(scaled);
  float rounded = __half2float(high);
  if (rounded == 0.f && x != 0.f) {
    rounded = copysignf(kLeastHalf, x);
    high = __float2half_rn(rounded);
  }
  return {high, __float2half_rn(scaled - rounded)};
}

__device__ __forceinline__ uint32_t PackHalves(half low, half high) {
  return static_cast<uint32_t>(__half_as_ushort(high)) << 16 | __half_as_ushort(low);
}

// A pair of numbers as pairs of halves, the first in the low 16 bits.
struct HalvesPair {
  uint32_t high, low;
};

// As SplitNumber of numbers that need none of its rules.
__device__ __forceinline__ HalvesPair SplitPair(float x, float y) {
  const half2 high = __floats2half2_rn(x, y);
  const float2 rounded = __half22float2(high);
  return {*reinterpret_cast<const uint32_t*>(&high), ToPair<half>(x - rounded.x, y - rounded.y)};
}

// Four neighbours x: their high halves and their low ones, 8-byte aligned.
__device__ __forceinline__ void StoreFourHalves(half* high, half* low, const float* x,
                                                float to_halves) {
  const float s[] = {x[0] * to_halves, x[1] * to_halves, x[2] * to_halves, x[3] * to_halves};
  const float least = fminf(fminf(fabsf(s[0]), fabsf(s[1])), fminf(fabsf(s[2]), fabsf(s[3])));
  const float sum = fabsf(s[0]) + fabsf(s[1]) + fabsf(s[2]) + fabsf(s[3]);
  HalvesPair first, second;
  if (least >= kLeastHalf && sum < INFINITY) {
    first = SplitPair(s[0], s[1]);
    second = SplitPair(s[2], s[3]);
  } else {
    const Halves a = SplitNumber(x[0], to_halves), b = SplitNumber(x[1], to_halves);
    const Halves c = SplitNumber(x[2], to_halves), d = SplitNumber(x[3], to_halves);
    first = {PackHalves(a.high, b.high), PackHalves(a.low, b.low)};
    second = {PackHalves(c.high, d.high), PackHalves(c.low, d.low)};
  }
  *reinterpret_cast<uint2*>(high) = uint2{first.high, second.high};
  *reinterpret_cast<uint2*>(low) = uint2{first.low, second.low};
}

// Four neighbours x of a split row; `column` is the first's, a multiple of 4.
__device__ __forceinline__ void StoreInSplitRow(half* row, int column, const float* x,
                                                float to_halves) {
  half* const to = row + column / kSplitGroup * (2 * kSplitGroup) + column % kSplitGroup;
  StoreFourHalves(to, to + kSplitGroup, x, to_halves);
}

}  // namespace cuda
}  // namespace ft
