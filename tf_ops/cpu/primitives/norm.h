// Bias, residual and layer norm.
// Textual, compiled once for each instruction set (isa.h): no include guard.
// out = (y - mean) / sqrt(var + epsilon) * gamma + beta, y = x + bias + residual.
void AddBiasResidualLayerNorm(const LayerNormArgs& g) {
  const int64_t n = g.n, whole = n / kLanes * kLanes;
  for (int64_t row = 0; row < g.rows; ++row) {
    float* x = const_cast<float*>(g.x) + row * n;  // x is the caller's scratch
    const T* residual = static_cast<const T*>(g.residual) + row * n;
    Vec sums = Vec{};
    float sum = 0.0f;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec y = Load(x + i) + Load(g.bias + i) + LoadT(residual + i);
      Store(x + i, y);
      sums += y;
    }
    for (int64_t i = whole; i < n; ++i) {
      x[i] += g.bias[i] + ToFloat(residual[i]);
      sum += x[i];
    }
    const float mean = (sum + Sum(sums)) / static_cast<float>(n);
    Vec squares = Vec{};
    float square = 0.0f;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Vec d = Load(x + i) - mean;
      squares += d * d;
    }
    for (int64_t i = whole; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float variance = (square + Sum(squares)) / static_cast<float>(n);
    const float inverse = 1.0f / std::sqrt(variance + g.epsilon);
    T* out = static_cast<T*>(g.out) + row * n;
    for (int64_t i = 0; i < whole; i += kLanes) {
      StoreT(out + i, (Load(x + i) - mean) * inverse * Load(g.gamma + i) + Load(g.beta + i));
    }
    for (int64_t i = whole; i < n; ++i) {
      Put(out + i, (x[i] - mean) * inverse * g.gamma[i] + g.beta[i]);
    }
  }
}
