// Implementation of tf_ops/cpu/kernels.h for one instruction set: textual, no include guard.
// FT_ISA is the namespace, FT_LANES the floats of one vector register, and FT_COMPUTE_FLOAT32 or
// FT_COMPUTE_BFLOAT16 the type of the products' operands; sums are always float32.
//
// Written with GCC's vector types, so that one text serves every register width; only bfloat16's
// dot product needs an intrinsic.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "tf_ops/cpu/kernels.h"

#ifdef FT_COMPUTE_BFLOAT16
#include <immintrin.h>
#endif

namespace ft::cpu::FT_ISA {
namespace {

typedef float Vec __attribute__((vector_size(4 * FT_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * FT_LANES)));

constexpr int64_t kLanes = FT_LANES;
constexpr int64_t kWidth = 2 * kLanes;  // panel width: two registers
// Rows of a tile: kRows x 2 sums stay in registers (32 with AVX-512, 16 before), next to two
// registers of the panel and one of the left side.
constexpr int kRows = FT_LANES == 16 ? 12 : 6;
// Measured: AVX-512 on a Zen 5 (L2 1 MiB), the others on a Zen 3 (L2 512 KiB).
constexpr int64_t kInnerChunk = 768;
constexpr int64_t kBlockRows = FT_LANES == 16 ? 144 : 96;
constexpr int64_t kMinRowsPerThread = 96;

#ifdef FT_COMPUTE_BFLOAT16
using T = Bfloat16;
constexpr int64_t kPair = 2;  // elements of one step of the sum
constexpr DataType kComputeType = DataType::kBFloat16;
#else
using T = float;
constexpr int64_t kPair = 1;
constexpr DataType kComputeType = DataType::kFloat32;
#endif

inline Vec Load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
inline Vec Set(float x) { return x - Vec{}; }

inline float FromBfloat16(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline Bfloat16 ToBfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Bfloat16>((bits >> 16) | 0x40u);
  return static_cast<Bfloat16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float FromHalf(Half x) {
  _Float16 h;
  std::memcpy(&h, &x, 2);
  return static_cast<float>(h);
}
inline Half ToHalf(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  Half y;
  std::memcpy(&y, &h, 2);
  return y;
}

inline float ToFloat(float x) { return x; }
inline float ToFloat(Bfloat16 x) { return FromBfloat16(x); }
inline void Put(float* p, float x) { *p = x; }
inline void Put(Bfloat16* p, float x) { *p = ToBfloat16(x); }

// kLanes elements of the compute type as floats, and back.
#ifdef FT_COMPUTE_BFLOAT16
inline Vec LoadT(const T* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
}
inline void StoreT(T* p, Vec v) {
  const __m256bh raw = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &raw, 32);
}
#else
inline Vec LoadT(const T* p) { return Load(p); }
inline void StoreT(T* p, Vec v) { Store(p, v); }
#endif

// --- functions of a register -----------------------------------------------------------------

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

// --- the product of a tile --------------------------------------------------------------------

// c[R, kWidth] (+)= a[R, k] * panel[k, kWidth]; `steps` is k / kPair. Meanwhile asks for
// `prefetch_step` bytes a step from `prefetch` on: the next panel, so that its way from memory
// overlaps with arithmetic (what makes few rows fast).
template <int R>
void Tile(const T* a, int64_t lda, const T* panel, int64_t steps, float* c, int64_t ldc,
          bool accumulate, const char* prefetch, int64_t prefetch_step) {
  Vec sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    sum[i][0] = accumulate ? Load(c + i * ldc) : Vec{};
    sum[i][1] = accumulate ? Load(c + i * ldc + kLanes) : Vec{};
  }
  for (int64_t s = 0; s < steps; ++s) {
    __builtin_prefetch(prefetch, 0, 2);
    prefetch += prefetch_step;
#ifdef FT_COMPUTE_BFLOAT16
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(panel);
    const __m512bh b1 = (__m512bh)_mm512_loadu_si512(panel + 2 * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * lda + 2 * s, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      sum[i][0] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][0], x, b0);
      sum[i][1] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][1], x, b1);
    }
#else
    const Vec b0 = Load(panel), b1 = Load(panel + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const Vec x = Set(a[i * lda + s]);
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
#endif
    panel += kPair * kWidth;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    Store(c + i * ldc, sum[i][0]);
    Store(c + i * ldc + kLanes, sum[i][1]);
  }
}

using TileFn = void (*)(const T*, int64_t, const T*, int64_t, float*, int64_t, bool, const char*,
                        int64_t);
// kTiles[r - 1] computes r rows.
constexpr TileFn kTiles[] = {
    Tile<1>, Tile<2>, Tile<3>, Tile<4>,  Tile<5>,  Tile<6>,
#if FT_LANES == 16
    Tile<7>, Tile<8>, Tile<9>, Tile<10>, Tile<11>, Tile<12>,
#endif
};

// Deals rows to the fewest tiles that hold them, equally but for one row: 13 rows are 7 + 6 and not
// 12 + 1, as a tile of one row takes nearly the time of a full one.
class RowTiles {
 public:
  explicit RowTiles(int64_t rows)
      : count_((rows + kRows - 1) / kRows),
        rows_(count_ > 0 ? rows / count_ : 0),
        larger_(count_ > 0 ? rows % count_ : 0) {}
  int64_t count() const { return count_; }
  int64_t rows(int64_t tile) const { return rows_ + (tile < larger_ ? 1 : 0); }

 private:
  int64_t count_, rows_, larger_;  // the first larger_ tiles have a row more
};

// out[rows, cols] = activation(x + bias) of a tile's sums x[rows, kWidth], which it overwrites.
// `bias` has kWidth elements.
void StoreActivated(const GemmArgs& g, float* x, const float* bias, int64_t rows, int64_t cols,
                    T* out) {
  for (int64_t i = 0; i < rows; ++i, x += kWidth, out += g.ld_out) {
    for (int64_t j = 0; j < kWidth; j += kLanes) {
      Vec y = Load(x + j) + Load(bias + j);
      if (g.apply_activation) y = Activate(y, g.activation);
      if (cols == kWidth) {
        StoreT(out + j, y);
      } else {
        Store(x + j, y);
      }
    }
    if (cols < kWidth) {
      for (int64_t j = 0; j < cols; ++j) Put(out + j, x[j]);
    }
  }
}

void Gemm(const GemmArgs& g) {
  if (g.rows == 0 || g.cols == 0) return;
  const RowTiles tiles(g.rows);
  const int64_t steps = (g.k + kPair - 1) / kPair;
  const int64_t chunk_bytes = steps * kPair * kWidth * static_cast<int64_t>(sizeof(T));
  // Each tile asks for its share of the next panel, rounded up so that no line is left out.
  const int64_t prefetch_bytes = (chunk_bytes + tiles.count() - 1) / tiles.count();
  const int64_t prefetch_step = steps ? (prefetch_bytes + steps - 1) / steps : 0;
  alignas(64) float buffer[kRows * kWidth];
  alignas(64) float bias[kWidth] = {};
  for (int64_t col = 0; col < g.cols; col += kWidth) {
    const char* panel = static_cast<const char*>(g.panels) + col / kWidth * g.panel_bytes;
    const int64_t cols = std::min(kWidth, g.cols - col);
    const bool last = col + kWidth >= g.cols;
    const bool direct = g.out == nullptr && cols == kWidth;
    if (g.out != nullptr) std::memcpy(bias, g.bias + col, cols * 4);
    for (int64_t tile = 0, row = 0; tile < tiles.count(); row += tiles.rows(tile), ++tile) {
      const int64_t rows = tiles.rows(tile);
      const char* prefetch = last ? panel : panel + g.panel_bytes + tile * prefetch_bytes;
      float* c = direct ? g.c + row * g.ldc + col : buffer;
      const int64_t ldc = direct ? g.ldc : kWidth;
      if (!direct && g.accumulate) {
        for (int64_t i = 0; i < rows; ++i) {
          std::memcpy(buffer + i * kWidth, g.c + (row + i) * g.ldc + col, cols * 4);
        }
      }
      kTiles[rows - 1](static_cast<const T*>(g.a) + row * g.lda, g.lda,
                       reinterpret_cast<const T*>(panel), steps, c, ldc, g.accumulate, prefetch,
                       last ? 0 : prefetch_step);
      if (direct) continue;
      if (g.out != nullptr) {
        StoreActivated(g, buffer, bias, rows, cols, static_cast<T*>(g.out) + row * g.ld_out + col);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(g.c + (row + i) * g.ldc + col, buffer + i * kWidth, cols * 4);
      }
    }
  }
}

// --- layer norm -------------------------------------------------------------------------------

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

// --- attention of one head --------------------------------------------------------------------

struct AttentionScratch {
  int64_t padded_keys, padded_size, k_panels, v_panels, scores, probabilities, context, total;
};

AttentionScratch PlanAttention(int64_t num_keys, int64_t head_size) {
  AttentionScratch s;
  s.padded_keys = AlignUp(num_keys, kWidth);
  s.padded_size = AlignUp(head_size, kWidth);
  const int64_t element = sizeof(T);
  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += AlignUp(bytes, 64);
    return begin;
  };
  s.k_panels = take(s.padded_keys * AlignUp(head_size, kPair) * element);
  s.v_panels = take(s.padded_size * s.padded_keys * element);
  s.scores = take(kRows * s.padded_keys * 4);
  s.probabilities = kPair == 1 ? s.scores : take(kRows * s.padded_keys * element);
  s.context = take(kRows * s.padded_size * 4);
  s.total = at;
  return s;
}

int64_t AttentionScratchBytes(int64_t num_keys, int64_t head_size) {
  return PlanAttention(num_keys, head_size).total;
}

// Element i of a tensor of any floating-point type.
float ElementAt(const void* x, DataType dtype, int64_t i) {
  switch (dtype) {
    case DataType::kFloat16:
      return FromHalf(static_cast<const Half*>(x)[i]);
    case DataType::kBFloat16:
      return FromBfloat16(static_cast<const Bfloat16*>(x)[i]);
    default:
      return static_cast<const float*>(x)[i];
  }
}

// One row of scores to exp(score - max); returns 1 / their sum. `count` keys, padded with zeros.
float Softmax(float* scores, T* probabilities, int64_t count, int64_t padded, float scale,
              const void* mask, DataType mask_dtype, int64_t mask_at) {
  const int64_t whole = count / kLanes * kLanes;
  if (mask != nullptr) {
    for (int64_t j = 0; j < count; ++j) {
      scores[j] = scores[j] * scale + (1.0f - ElementAt(mask, mask_dtype, mask_at + j)) * -10000.0f;
    }
    scale = 1.0f;
  }
  Vec highest = Set(-INFINITY);
  for (int64_t j = 0; j < whole; j += kLanes) highest = Max(Load(scores + j), highest);
  float top = MaxLane(highest);
  for (int64_t j = whole; j < count; ++j) top = std::max(scores[j], top);
  // A negative scale cannot occur, so the largest score stays the largest when scaled.
  for (int64_t j = count; j < padded; ++j) scores[j] = -INFINITY;
  Vec sums = Vec{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec difference = (Load(scores + j) - top) * scale;
    // Nothing below what Exp tells apart, as a value may be large; NaN stays.
    Vec e = difference < -87.0f ? Vec{} : Exp(difference);
    if (j + kLanes > count) {  // the padding's share is exactly nothing
      alignas(64) float lanes[kLanes];
      Store(lanes, e);
      for (int64_t i = std::max<int64_t>(count - j, 0); i < kLanes; ++i) lanes[i] = 0.0f;
      e = Load(lanes);
    }
    sums += e;
    StoreT(probabilities + j, e);
  }
  return 1.0f / Sum(sums);
}

// softmax(q k^T * scale + (1 - mask) * -10000) v of one head of one sequence, kRows queries at a
// time: only a tile of scores ever exists.
void Attention(const AttentionArgs& g) {
  const AttentionScratch plan = PlanAttention(g.num_keys, g.head_size);
  char* scratch = static_cast<char*>(g.scratch);
  T* k_panels = reinterpret_cast<T*>(scratch + plan.k_panels);
  T* v_panels = reinterpret_cast<T*>(scratch + plan.v_panels);
  float* scores = reinterpret_cast<float*>(scratch + plan.scores);
  T* probabilities = reinterpret_cast<T*>(scratch + plan.probabilities);
  float* context = reinterpret_cast<float*>(scratch + plan.context);
  const T* q = static_cast<const T*>(g.q);
  const T* k = static_cast<const T*>(g.k);
  const T* v = static_cast<const T*>(g.v);
  T* out = static_cast<T*>(g.out);
  if (g.num_keys == 0) {
    for (int64_t i = 0; i < g.num_queries; ++i) std::fill_n(out + i * g.ld_out, g.head_size, T{});
    return;
  }
  const int64_t size = AlignUp(g.head_size, kPair);
  for (int64_t panel = 0; panel < plan.padded_keys / kWidth; ++panel) {  // k^T
    T* to = k_panels + panel * size * kWidth;
    const int64_t keys = std::min(kWidth, g.num_keys - panel * kWidth);
    if (keys < kWidth) std::fill_n(to, size * kWidth, T{});
    for (int64_t j = 0; j < keys; ++j) {
      const T* from = k + (panel * kWidth + j) * g.ld;
      for (int64_t d = 0; d < g.head_size; d += kPair) {
        std::memcpy(to + d * kWidth + j * kPair, from + d, sizeof(T) * kPair);
      }
    }
  }
  const int64_t even_keys = AlignUp(g.num_keys, kPair);
  for (int64_t panel = 0; panel < plan.padded_size / kWidth; ++panel) {
    T* to = v_panels + panel * even_keys * kWidth;
    const int64_t cols = std::min(kWidth, g.head_size - panel * kWidth);
    if (cols < kWidth || even_keys > g.num_keys) std::fill_n(to, even_keys * kWidth, T{});
    for (int64_t j = 0; j < g.num_keys; ++j) {
      const T* from = v + j * g.ld + panel * kWidth;
      T* row = to + (j - j % kPair) * kWidth + j % kPair;
      for (int64_t d = 0; d < cols; ++d) row[d * kPair] = from[d];
    }
  }
  const RowTiles tiles(g.num_queries);
  for (int64_t t = 0, row = 0; t < tiles.count(); row += tiles.rows(t), ++t) {
    const int64_t rows = tiles.rows(t);
    const TileFn tile = kTiles[rows - 1];
    for (int64_t j = 0; j < plan.padded_keys; j += kWidth) {
      tile(q + row * g.ld, g.ld, k_panels + j * size, size / kPair, scores + j, plan.padded_keys,
           false, reinterpret_cast<const char*>(k_panels), 0);
    }
    float inverse[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      inverse[i] =
          Softmax(scores + i * plan.padded_keys, probabilities + i * plan.padded_keys, g.num_keys,
                  plan.padded_keys, g.scale, g.mask, g.mask_dtype, (row + i) * g.mask_ld);
    }
    for (int64_t d = 0; d < plan.padded_size; d += kWidth) {
      tile(probabilities, plan.padded_keys, v_panels + d * even_keys, even_keys / kPair,
           context + d, plan.padded_size, false, reinterpret_cast<const char*>(v_panels), 0);
    }
    const int64_t whole = g.head_size / kLanes * kLanes;
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = context + i * plan.padded_size;
      T* to = out + (row + i) * g.ld_out;
      for (int64_t d = 0; d < whole; d += kLanes) StoreT(to + d, Load(from + d) * inverse[i]);
      for (int64_t d = whole; d < g.head_size; ++d) Put(to + d, from[d] * inverse[i]);
    }
  }
}

// --- packing and conversion -------------------------------------------------------------------

void PackPanel(const PanelSource* sources, int64_t source_cols, DataType dtype, int64_t k,
               int64_t col, int64_t cols, void* panel) {
  T* to = static_cast<T*>(panel);
  std::fill_n(to, AlignUp(k, kPair) * kWidth, T{});
  for (int64_t s = 0; s < k; ++s) {
    T* row = to + (s - s % kPair) * kWidth + s % kPair;
    for (int64_t j = 0; j < cols; ++j) {
      const PanelSource& source = sources[(col + j) / source_cols];
      Put(row + j * kPair, ElementAt(source.data, dtype, s * source.ld + (col + j) % source_cols));
    }
  }
}

}  // namespace

#ifdef FT_COMPUTE_BFLOAT16
extern const Kernels kBfloat16Kernels;
const Kernels kBfloat16Kernels = {
#else
void ConvertImpl(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = ElementAt(x, x_dtype, i);
    switch (y_dtype) {
      case DataType::kFloat16:
        static_cast<Half*>(y)[i] = ToHalf(value);
        break;
      case DataType::kBFloat16:
        static_cast<Bfloat16*>(y)[i] = ToBfloat16(value);
        break;
      default:
        static_cast<float*>(y)[i] = value;
    }
  }
}

extern const Kernels kFloatKernels;
const Kernels kFloatKernels = {
#endif
#define FT_STRING2(x) #x
#define FT_STRING(x) FT_STRING2(x)
    FT_STRING(FT_ISA),
    kComputeType,
    kWidth,
    kRows,
    kInnerChunk,
    kBlockRows,
    kMinRowsPerThread,
    Gemm,
    Attention,
    AttentionScratchBytes,
    AddBiasResidualLayerNorm,
    PackPanel,
};

}  // namespace ft::cpu::FT_ISA
