// One post-layer-norm BERT layer in float64, for the tests of both backends.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tf_ops/core/encoder.h"

namespace ft::reference {

using Doubles = std::vector<double>;

// The rows of one batch: sequence b has rows[b] queries and keys[b] keys from row first[b].
struct Sequences {
  int64_t batch_size, max_seq_len, num_tokens;
  std::vector<int64_t> first, rows, keys;
};

inline Sequences MakeSequences(int64_t max_seq_len, const std::vector<int32_t>& lengths,
                               bool packed) {
  Sequences s;
  s.batch_size = lengths.size();
  s.max_seq_len = max_seq_len;
  s.num_tokens = 0;
  for (int32_t length : lengths) {
    s.first.push_back(s.num_tokens);
    s.rows.push_back(packed ? length : max_seq_len);
    s.keys.push_back(length);
    s.num_tokens += s.rows.back();
  }
  return s;
}

// y[t,n] = x[t,k] w[k,n] + b[n].
inline Doubles Dense(const Doubles& x, const Doubles& w, const Doubles& b, int64_t k, int64_t n) {
  const int64_t t = x.size() / k;
  Doubles y(t * n);
#ifdef _OPENMP
#pragma omp parallel for
#endif
  for (int64_t i = 0; i < t; ++i) {
    double* row = &y[i * n];
    for (int64_t c = 0; c < n; ++c) row[c] = b[c];
    for (int64_t j = 0; j < k; ++j) {
      const double v = x[i * k + j];
      const double* weights = &w[j * n];
      for (int64_t c = 0; c < n; ++c) row[c] += v * weights[c];
    }
  }
  return y;
}

inline void AddAndNorm(Doubles* x, const Doubles& residual, const Doubles& gamma,
                       const Doubles& beta, double epsilon) {
  const int64_t h = gamma.size();
  for (size_t row = 0; row < x->size(); row += h) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < h; ++i) mean += (*x)[row + i] += residual[row + i];
    mean /= h;
    for (int64_t i = 0; i < h; ++i) variance += std::pow((*x)[row + i] - mean, 2);
    const double scale = 1 / std::sqrt(variance / h + epsilon);
    for (int64_t i = 0; i < h; ++i) {
      (*x)[row + i] = ((*x)[row + i] - mean) * scale * gamma[i] + beta[i];
    }
  }
}

// qkv[T,3H] -> [T,H]; mask [B,S,S] or empty. A NaN score makes its row NaN, as the sum is.
inline Doubles Attention(const Doubles& qkv, const Sequences& s, int64_t heads, int64_t d,
                         const Doubles& mask) {
  const int64_t h = heads * d;
  Doubles out(s.num_tokens * h, 0.0);
  for (int64_t b = 0; b < s.batch_size; ++b) {
#ifdef _OPENMP
#pragma omp parallel for collapse(2)
#endif
    for (int64_t n = 0; n < heads; ++n) {
      for (int64_t i = 0; i < s.rows[b]; ++i) {
        Doubles score(s.keys[b]);
        const double* q = &qkv[(s.first[b] + i) * 3 * h + n * d];
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j < s.keys[b]; ++j) {
          const double* k = &qkv[(s.first[b] + j) * 3 * h + h + n * d];
          double dot = 0;
          for (int64_t c = 0; c < d; ++c) dot += q[c] * k[c];
          score[j] = dot / std::sqrt(static_cast<double>(d));
          if (!mask.empty()) {
            score[j] += (1 - mask[(b * s.max_seq_len + i) * s.max_seq_len + j]) * -10000.0;
          }
          largest = std::max(largest, score[j]);
        }
        for (double& v : score) sum += v = std::exp(v - largest);
        for (int64_t j = 0; j < s.keys[b]; ++j) {
          const double* v = &qkv[(s.first[b] + j) * 3 * h + 2 * h + n * d];
          for (int64_t c = 0; c < d; ++c) {
            out[(s.first[b] + i) * h + n * d + c] += score[j] / sum * v[c];
          }
        }
      }
    }
  }
  return out;
}

// The sixteen weights in the order of WeightFields().
struct Layer {
  Doubles values[kWeightsPerLayer];
};

inline double Activate(double x, Activation activation) {
  switch (activation) {
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu:
      break;
  }
  return x < 0 ? 0 : x;
}

inline Doubles RunLayer(const Doubles& x, const Layer& layer, const EncoderConfig& config,
                        const Sequences& s, const Doubles& mask) {
  const int64_t h = config.hidden_size(), i = config.inner_size, t = s.num_tokens;
  const auto& w = layer.values;
  Doubles qkv(t * 3 * h);
  for (int part = 0; part < 3; ++part) {
    const Doubles y = Dense(x, w[2 * part], w[2 * part + 1], h, h);
    for (int64_t row = 0; row < t; ++row) {
      std::copy_n(&y[row * h], h, &qkv[row * 3 * h + part * h]);
    }
  }
  Doubles a = Dense(Attention(qkv, s, config.num_heads, config.head_size, mask), w[6], w[7], h, h);
  AddAndNorm(&a, x, w[9], w[8], config.layernorm_epsilon);
  Doubles inner = Dense(a, w[10], w[11], h, i);
  for (double& v : inner) v = Activate(v, config.activation);
  Doubles out = Dense(inner, w[12], w[13], i, h);
  AddAndNorm(&out, a, w[15], w[14], config.layernorm_epsilon);
  return out;
}

}  // namespace ft::reference
