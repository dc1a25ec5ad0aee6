// Bias, residual and layer norm.
// Textual, compiled once for each instruction set (isa.h): no include guard.
// A row of the residual as real numbers: T, or integers of `unit`.
inline Vec LoadResidual(const T* p, float) { return LoadT(p); }
inline Vec LoadResidual(const Q* p, float unit) { return LoadIntegers(p) * unit; }
inline float ResidualAt(const T* p, float) { return ToFloat(*p); }
inline float ResidualAt(const Q* p, float unit) { return IntegerAt(p) * unit; }

// x += bias + residual; returns its mean.
template <typename Residual>
float AddBiasResidual(const LayerNormArgs& g, const Residual* residual, float* x) {
  const int64_t n = g.n, whole = n / kLanes * kLanes;
  Vec sums = Vec{};
  float sum = 0.0f;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec y = Load(x + i) + Load(g.bias + i) + LoadResidual(residual + i, g.residual_unit);
    Store(x + i, y);
    sums += y;
  }
  for (int64_t i = whole; i < n; ++i) {
    x[i] += g.bias[i] + ResidualAt(residual + i, g.residual_unit);
    sum += x[i];
  }
  return (sum + Sum(sums)) / static_cast<float>(n);
}

// out = (y - mean) / sqrt(var + epsilon) * gamma + beta, y = x + bias + residual.
void AddBiasResidualLayerNorm(const LayerNormArgs& g) {
  const int64_t n = g.n, whole = n / kLanes * kLanes;
  for (int64_t row = 0; row < g.rows; ++row) {
    float* x = const_cast<float*>(g.x) + row * n;  // x is the caller's scratch
    const int64_t at = row * g.ld_residual;
    const float mean = g.residual_unit != 0.0f
                           ? AddBiasResidual(g, static_cast<const Q*>(g.residual) + at, x)
                           : AddBiasResidual(g, static_cast<const T*>(g.residual) + at, x);
    Vec squares = Vec{};
    float square = 0.0f;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec d = Load(x + i) - mean;
      squares += d * d;
    }
    for (int64_t i = whole; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float variance = (square + Sum(squares)) / static_cast<float>(n);
    const float inverse = 1.0f / std::sqrt(variance + g.epsilon);
    const auto normed = [&](int64_t i) {
      return (Load(x + i) - mean) * inverse * Load(g.gamma + i) + Load(g.beta + i);
    };
    const auto normed_at = [&](int64_t i) {
      return (x[i] - mean) * inverse * g.gamma[i] + g.beta[i];
    };
    T* out = g.out == nullptr ? nullptr : static_cast<T*>(g.out) + row * n;
    if (g.out_int == nullptr) {
      for (int64_t i = 0; i < whole; i += kLanes) StoreT(out + i, normed(i));
      for (int64_t i = whole; i < n; ++i) Put(out + i, normed_at(i));
      continue;
    }
    Q* integers = static_cast<Q*>(g.out_int) + row * g.ld_int;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec y = normed(i);
      StoreIntegers(integers + i, y * g.int_scale);
      if (out == nullptr) continue;
      StoreT(out + i, g.out_unit != 0.0f ? LoadIntegers(integers + i) * g.out_unit : y);
    }
    for (int64_t i = whole; i < n; ++i) {
      const float y = normed_at(i);
      PutInteger(integers + i, y * g.int_scale);
      if (out != nullptr)
        Put(out + i, g.out_unit != 0.0f ? IntegerAt(integers + i) * g.out_unit : y);
    }
  }
}
