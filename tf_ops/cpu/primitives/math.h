// Functions of a register.
// Textual, compiled once for each instruction set (isa.h): no include guard.
// Of a number and NaN these give the second argument: where NaN must pass, it comes second. By
// intrinsics, as GCC 12 makes a comparison and a move of the others.
#if FT_LANES == 16 && defined(__AVX512F__)
inline Vec Max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec Min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec Min(Vec a, Vec b) { return a < b ? a : b; }
#endif

template <typename F>
inline float Reduce(Vec v, F f) {
  float lanes[kLanes];
  Store(lanes, v);
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t i = 0; i < step; ++i) lanes[i] = f(lanes[i], lanes[i + step]);
  }
  return lanes[0];
}
inline float Sum(Vec v) {
  return Reduce(v, [](float a, float b) { return a + b; });
}
inline float MaxLane(Vec v) {
  return Reduce(v, [](float a, float b) { return a > b ? a : b; });
}

// p * 2^n where n is a whole number and the result a normal one.
inline Vec TimesPowerOf2(Vec p, Vec n) {
#if FT_LANES == 16 && defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)exponent;
#endif
}

// exp to about 1 ulp; the argument is clamped to [-87, 88], so results are never 0, inf or
// denormal. NaN gives NaN. Polynomial of Cephes' expf (Moshier): exp(r) on |r| <= ln(2)/2.
inline Vec Exp(Vec x) {
  x = Min(Set(88.0f), Max(Set(-87.0f), x));
  const Vec magic = Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504f + magic) - magic;
  Vec r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = Set(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return TimesPowerOf2(p, n);
}

// x * 0.5 * (1 + tanh(u)) = x / (1 + exp(-2u)).
inline Vec GeluTanh(Vec x) {
  const Vec u = x * 0.7978845608f * (1.0f + 0.044715f * x * x);
  return x / (1.0f + Exp(-2.0f * u));
}

// x * 0.5 * erfc(-x / sqrt(2)), with erfc from Abramowitz and Stegun 7.1.26 (error 1.5e-7).
inline Vec GeluErf(Vec x) {
  const Vec z = x * 0.70710678f;
  const Vec a = z < 0.0f ? -z : z;
  const Vec t = 1.0f / (1.0f + 0.3275911f * a);
  Vec p = Set(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec erfc = p * t * Exp(-a * a);
  return 0.5f * x * (z < 0.0f ? erfc : 2.0f - erfc);
}

#if defined(FT_COMPUTE_BFLOAT16) && defined(__AVX512F__)
#define FT_COARSE
// What becomes a bfloat16, whose half step is 2^-9, needs no more than the following.

// 2^x for x above -126, relative error 3e-6. NaN gives NaN.
inline Vec CoarseExp2(Vec x) {
  const Vec magic = Set(12582912.0f);
  const Vec n = (x + magic) - magic;
  const Vec f = x - n;
  // By least squares of the relative error on |f| <= 1/2, weighted until its extremes were equal.
  Vec p = Set(0.009570101f);
  p = p * f + 0.055917859f;
  p = p * f + 0.24024744f;
  p = p * f + 0.69312179f;
  p = p * f + 0.99999928f;
  return TimesPowerOf2(p, n);
}

constexpr float kLog2E = 1.44269504f;

inline Vec CoarseGeluTanh(Vec x) {
  constexpr float kLinear = -2.0f * 0.7978845608f * kLog2E, kCubic = 0.044715f * kLinear;
  const Vec t = x * (kLinear + kCubic * x * x);
  const Vec e = CoarseExp2(Min(Set(125.0f), Max(Set(-125.0f), t)));
  return x / (1.0f + e);
}
#endif

inline Vec Activate(Vec x, Activation activation) {
  switch (activation) {
    case Activation::kGeluTanh:
      return GeluTanh(x);
    case Activation::kGeluErf:
      return GeluErf(x);
    case Activation::kRelu:
      return Max(Vec{}, x);
  }
  return x;
}

// e^x for x in [-87, 0], as exact as a value of type T wants.
inline Vec ExpForT(Vec x) {
#ifdef FT_COARSE
  return CoarseExp2(x * kLog2E);
#else
  return Exp(x);
#endif
}

// The same as Activate for a result of type Out.
template <typename Out>
inline Vec ActivateTo(Vec x, Activation activation) {
#ifdef FT_COARSE
  if (std::is_same_v<Out, Bfloat16> && activation == Activation::kGeluTanh) {
    return CoarseGeluTanh(x);
  }
#endif
  return Activate(x, activation);
}
