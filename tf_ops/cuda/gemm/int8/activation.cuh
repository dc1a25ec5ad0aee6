// Activations of numbers that become integers (docs/int8.md).
#pragma once

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

// Right to one part in 2,000 of the distance from 0 and from x, where an integer keeps one in 256:
// of 20,000 integers one is another. An exact one takes longer than the product before it: only a
// model in float32 has it.
__device__ __forceinline__ float GeluTanhForInteger(float x) {
  constexpr float kLinear = 0.79788456080286536f;
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(x * fmaf(kLinear * 0.044715f, x * x, kLinear)));
  const float half = 0.5f * x;
  return fmaf(half, tanh, half);
}

// x[i] = activation(x[i])
template <int kCount>
__device__ __forceinline__ void ActivateIntegers(Int8Activation activation, float* x) {
  if (activation == Int8Activation::kGeluTanh) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = GeluTanhForInteger(x[i]);
  } else if (activation == Int8Activation::kGeluTanhExact) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluTanh>(x[i]);
  } else if (activation == Int8Activation::kGeluErf) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluErf>(x[i]);
  } else if (activation == Int8Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kRelu>(x[i]);
  }
}

}  // namespace cuda
}  // namespace ft
