// One post-layer-norm BERT layer in float64, for the tests of both backends.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/core/scales.h"

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

// INT8 as docs/int8.md has it. Kernels hold integers.
struct Int8Layer {
  Layer layer;
  LayerRanges ranges;
};

// Rounds to integers, and marks rows where float32 may round another way: a number lies close to
// the middle of two integers.
class Quantizer {
 public:
  explicit Quantizer(const Sequences& sequences)
      : sequences_(sequences), doubtful_(sequences.num_tokens, false) {}

  // x[T,n] as integers that stand for multiples of range / 127.
  Doubles operator()(const Doubles& x, double range) {
    const int64_t n = x.size() / doubtful_.size();
    Doubles q(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double steps = std::max(-128.0, std::min(127.0, x[i] * 127 / range));
      q[i] = std::isnan(x[i]) ? -128.0 : std::nearbyint(steps);
      // float32 has 24 bits: 128 steps, a few roundings on the way.
      if (std::abs(std::abs(steps - q[i]) - 0.5) < 2e-4) doubtful_[i / n] = true;
    }
    return q;
  }

  // Attention mixes the rows of a sequence.
  void Spread() {
    for (int64_t b = 0; b < sequences_.batch_size; ++b) {
      const auto begin = doubtful_.begin() + sequences_.first[b], end = begin + sequences_.rows[b];
      if (std::find(begin, end, true) != end) std::fill(begin, end, true);
    }
  }

  bool IsDoubtful(int64_t row) const { return doubtful_[row]; }

 private:
  const Sequences& sequences_;
  std::vector<bool> doubtful_;
};

// sums[t,n] of integers as real numbers, each column with its own scale; `rounded`: the range of
// the integers that they are rounded to first, or 0.
inline Doubles Int8Dense(const Doubles& q, double range, const Doubles& kernel,
                         const float* columns, const Doubles& bias, double rounded, int64_t k,
                         int64_t n, Quantizer* quantize) {
  Doubles y = Dense(q, kernel, Doubles(n, 0.0), k, n);
  for (size_t i = 0; i < y.size(); ++i) y[i] *= range * columns[i % n] / (127.0 * 127.0);
  if (rounded > 0) {
    y = (*quantize)(y, rounded);
    for (double& v : y) v *= rounded / 127;
  }
  for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i % n];
  return y;
}

// `is_last`: of the model.
inline Doubles RunInt8Layer(const Doubles& x, const Int8Layer& int8, const EncoderConfig& config,
                            bool is_last, const Sequences& s, const Doubles& mask,
                            Quantizer* quantize) {
  const int64_t h = config.hidden_size(), i = config.inner_size, t = s.num_tokens;
  const bool mode2 = config.int8_mode >= 2;
  const auto& w = int8.layer.values;
  const LayerRanges& r = int8.ranges;
  const auto real = [](Doubles q, double range) {
    for (double& v : q) v *= range / 127;
    return q;
  };
  const Doubles x8 = (*quantize)(x, r.input);
  quantize->Spread();
  Doubles qkv(t * 3 * h);
  const float* columns[] = {r.query, r.key, r.value};
  for (int part = 0; part < 3; ++part) {
    const Doubles y =
        Int8Dense(x8, r.input, w[2 * part], columns[part], w[2 * part + 1], 0, h, h, quantize);
    for (int64_t row = 0; row < t; ++row) {
      std::copy_n(&y[row * h], h, &qkv[row * 3 * h + part * h]);
    }
  }
  const Doubles context8 =
      (*quantize)(Attention(qkv, s, config.num_heads, config.head_size, mask), r.context);
  Doubles a = Int8Dense(context8, r.context, w[6], r.attention_output, w[7],
                        mode2 ? r.projection : 0, h, h, quantize);
  AddAndNorm(&a, mode2 ? real(x8, r.input) : x, w[9], w[8], config.layernorm_epsilon);
  const Doubles a8 = (*quantize)(a, r.attention_norm);
  Doubles inner = Int8Dense(a8, r.attention_norm, w[10], r.intermediate, w[11], 0, h, i, quantize);
  for (double& x : inner) x = Activate(x, config.activation);
  Doubles out = Int8Dense((*quantize)(inner, r.inner), r.inner, w[12], r.output_kernel, w[13],
                          mode2 ? r.output_product : 0, i, h, quantize);
  AddAndNorm(&out, mode2 ? real(a8, r.attention_norm) : a, w[15], w[14], config.layernorm_epsilon);
  return mode2 && !is_last ? real((*quantize)(out, r.output), r.output) : out;
}

}  // namespace ft::reference
