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

// Two neighbouring integers as bytes, the first in the lower.
__device__ __forceinline__ uint16_t PackIntegers(float x0, float x1) {
  return static_cast<uint16_t>((RoundToInt8(x0) & 0xff) | (RoundToInt8(x1) & 0xff) << 8);
}

// Right to one part in 2,000 of the distance from 0 and from x, where an integer keeps one in 256:
// of 20,000 integers one is another. An exact one takes longer than the product before it.
__device__ __forceinline__ float GeluTanhForInteger(float x) {
  constexpr float kLinear = 0.79788456080286536f;
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(x * fmaf(kLinear * 0.044715f, x * x, kLinear)));
  const float half = 0.5f * x;
  return fmaf(half, tanh, half);
}

// x[i] = activation(x[i]); -1: as it is.
template <int kCount>
__device__ __forceinline__ void ActivateIntegers(int activation, float* x) {
  if (activation == static_cast<int>(Activation::kGeluTanh)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = GeluTanhForInteger(x[i]);
  } else if (activation == static_cast<int>(Activation::kGeluErf)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluErf>(x[i]);
  } else if (activation == static_cast<int>(Activation::kRelu)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kRelu>(x[i]);
  }
}

}  // namespace cuda
}  // namespace ft
