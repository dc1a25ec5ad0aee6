// Activations of numbers that become integers (docs/int8.md).
#pragma once

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/gelu.cuh"
#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

// x[i] = activation(x[i])
template <int kCount>
__device__ __forceinline__ void ActivateIntegers(Int8Activation activation, float* x) {
  if (activation == Int8Activation::kGeluTanh) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = FastGelu::ComputeTanh(x[i]);
  } else if (activation == Int8Activation::kGeluErf) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = FastGelu::Erf()(x[i]);
  } else if (activation == Int8Activation::kGeluTanhExact) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluTanh>(x[i]);
  } else if (activation == Int8Activation::kGeluErfExact) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluErf>(x[i]);
  } else if (activation == Int8Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kRelu>(x[i]);
  }
}

}  // namespace cuda
}  // namespace ft
