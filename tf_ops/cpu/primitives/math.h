// Functions of a register.
// Textual, compiled once for each instruction set (isa.h): no include guard.
// Of a number and NaN these give the second argument: where NaN must pass, it comes second.
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec Min(Vec a, Vec b) { return a < b ? a : b; }

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
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)exponent;
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
