// GELUs for results of 16 or 8 bits, cheap enough for what follows a product.
#pragma once

#include "tf_ops/core/types.h"

namespace ft {
namespace cuda {

// x/2 (1 + tanh(argument)), within 2^-12 |x|: tanh.approx.f32 has a relative error of up to 2^-11.
__device__ __forceinline__ float GeluOfTanh(float x, float argument) {
  float tanh;
  asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(argument));
  const float half = 0.5f * x;
  return fmaf(half, tanh, half);
}

// x/2 (1 + tanh(x (linear + cubic x^2 + quintic x^4))), with x^2 no more than kSaturated inside.
struct FastGelu {
  // From here on tanh is 1, and a polynomial that is fitted below would go astray.
  static constexpr float kSaturated = 20.f;

  float linear, cubic, quintic;

  // google's gelu, as it is defined.
  __host__ __device__ static constexpr FastGelu Tanh() {
    return {0.79788456080286536f, 0.79788456080286536f * 0.044715f, 0.f};
  }
  // x/2 (1 + erf(x / sqrt(2))) within 1.9e-5 |x|: the coefficients with the smallest largest
  // difference from it over all x, found by weighted least squares whose weights follow the
  // difference.
  __host__ __device__ static constexpr FastGelu Erf() {
    return {0.797717833f, 0.0367982570f, -0.000315807260f};
  }

  __device__ __forceinline__ float operator()(float x) const {
    const float square = fminf(x * x, kSaturated);
    return GeluOfTanh(x, x * fmaf(square, fmaf(square, quintic, cubic), linear));
  }

  // Tanh()(x) without what only a fitted polynomial needs, for kernels that compute no other.
  static __device__ __forceinline__ float ComputeTanh(float x) {
    constexpr FastGelu kGelu = Tanh();
    return GeluOfTanh(x, x * fmaf(kGelu.cubic, x * x, kGelu.linear));
  }
};

}  // namespace cuda
}  // namespace ft
