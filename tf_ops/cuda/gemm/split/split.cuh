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
  // With it sums of products of rows of x by vectors of w stand for 2^(2 kLargestExponent) too much.
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

// The larger of `largest` and |x|, if x is finite.
__device__ __forceinline__ float LargestFinite(float largest, float x) {
  const float magnitude = fabsf(x);
  return magnitude < INFINITY ? fmaxf(largest, magnitude) : largest;
}

struct Halves {
  half high, low;
};

// x * to_halves = high + low to 22 bits. The rules that let infinities and NaN come out of the three
// products as of one: a number that is not 0 has a high half that is not, of its sign; what is not
// finite lies in the low half, which meets high halves alone.
__device__ __forceinline__ Halves SplitNumber(float x, float to_halves) {
  const float scaled = x * to_halves;
  if (!(fabsf(scaled) < INFINITY)) return {__float2half_rn(0.f), __float2half_rn(scaled)};
  half high = __float2half_rn(scaled);
  float rounded = __half2float(high);
  if (rounded == 0.f && x != 0.f) {
    rounded = copysignf(5.9604644775390625e-8f, x);  // 2^-24, the least
    high = __float2half_rn(rounded);
  }
  return {high, __float2half_rn(scaled - rounded)};
}

__device__ __forceinline__ uint32_t PackHalves(half low, half high) {
  return static_cast<uint32_t>(__half_as_ushort(high)) << 16 | __half_as_ushort(low);
}

// Four neighbours: their high halves and their low ones, 8-byte aligned.
__device__ __forceinline__ void StoreFourHalves(half* high, half* low, const float4& x,
                                                float to_halves) {
  const Halves a = SplitNumber(x.x, to_halves), b = SplitNumber(x.y, to_halves);
  const Halves c = SplitNumber(x.z, to_halves), d = SplitNumber(x.w, to_halves);
  *reinterpret_cast<uint2*>(high) = uint2{PackHalves(a.high, b.high), PackHalves(c.high, d.high)};
  *reinterpret_cast<uint2*>(low) = uint2{PackHalves(a.low, b.low), PackHalves(c.low, d.low)};
}

// Four neighbours of a split row; `column` is the first's, a multiple of 4.
__device__ __forceinline__ void StoreInSplitRow(half* row, int column, const float4& x,
                                                float to_halves) {
  half* const to = row + column / kSplitGroup * (2 * kSplitGroup) + column % kSplitGroup;
  StoreFourHalves(to, to + kSplitGroup, x, to_halves);
}

}  // namespace cuda
}  // namespace ft
