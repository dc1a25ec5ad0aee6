// Integers of INT8 (docs/int8.md): rounding, storing, and the dot product of the instruction set.
// Textual, compiled once for each instruction set (isa.h): no include guard.
//
// Q is the type in memory of what is int8 in docs/int8.md, kOffset what is added to it there, and
// kGroup how many products one instruction adds up: vpdpbusd multiplies four uint8 by four int8;
// without it pairs of int16 are multiplied, whose sums are exact (vpmaddubsw's, of int8 pairs,
// saturate).
#ifdef FT_INT8_VNNI
using Q = uint8_t;
constexpr int kOffset = 128;
constexpr int64_t kGroup = 4;
constexpr DataType kIntType = DataType::kUint8;
#else
using Q = int16_t;
constexpr int kOffset = 0;
constexpr int64_t kGroup = 2;
constexpr DataType kIntType = DataType::kInt16;
#endif
// What a sum's length is filled up to with zeros in a panel.
#ifdef FT_AMX
constexpr int64_t kIntPadding = 64;
#else
constexpr int64_t kIntPadding = kGroup;
#endif
typedef Q QVec __attribute__((vector_size(sizeof(Q) * FT_LANES)));

#ifndef FT_AMX
// What one row of a step multiplies with: kGroup activations, in all lanes; and kLanes columns of a
// panel.
#if defined(FT_INT8_VNNI) && FT_LANES == 16
using Factor = __m512i;
inline Factor Repeat(int32_t group) { return _mm512_set1_epi32(group); }
inline Factor LoadColumns(const int8_t* p) { return _mm512_loadu_si512(p); }
inline IntVec AddDot(IntVec sum, Factor x, Factor columns) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, x, columns);
}
#elif defined(FT_INT8_VNNI)
using Factor = __m256i;
inline Factor Repeat(int32_t group) { return _mm256_set1_epi32(group); }
inline Factor LoadColumns(const int8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline IntVec AddDot(IntVec sum, Factor x, Factor columns) {
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, x, columns);
}
#elif FT_LANES == 16
using Factor = __m512i;
inline Factor Repeat(int32_t group) { return _mm512_set1_epi32(group); }
inline Factor LoadColumns(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline IntVec AddDot(IntVec sum, Factor x, Factor columns) {
  return sum + (IntVec)_mm512_madd_epi16(x, columns);
}
#elif FT_LANES == 8
using Factor = __m256i;
inline Factor Repeat(int32_t group) { return _mm256_set1_epi32(group); }
inline Factor LoadColumns(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline IntVec AddDot(IntVec sum, Factor x, Factor columns) {
  return sum + (IntVec)_mm256_madd_epi16(x, columns);
}
#else
struct Factor {
  IntVec even, odd;
};
inline Factor Repeat(int32_t group) {
  int16_t pair[2];
  std::memcpy(pair, &group, 4);
  return {pair[0] - IntVec{}, pair[1] - IntVec{}};
}
inline Factor LoadColumns(const int8_t* p) {
  Factor columns;
  for (int64_t i = 0; i < kLanes; ++i) {
    columns.even[i] = p[2 * i];
    columns.odd[i] = p[2 * i + 1];
  }
  return columns;
}
inline IntVec AddDot(IntVec sum, Factor x, Factor columns) {
  return sum + x.even * columns.even + x.odd * columns.odd;
}
#endif
#endif  // FT_AMX

// Adding 1.5 * 2^23 rounds to an integer, half to even, which stands in the low bits.
constexpr float kRoundMagic = 12582912.0f;

// x clamped to the integers' range; NaN becomes -128.
inline Vec ClampToInt8(Vec x) { return Min(Max(x, Set(-128.0f)), Set(127.0f)); }
inline Vec RoundToInt8(Vec x) { return (ClampToInt8(x) + kRoundMagic) - kRoundMagic; }

// kLanes integers from the rounded numbers, and back.
inline void StoreIntegers(Q* p, Vec x) {
  const IntVec bits = (IntVec)(ClampToInt8(x) + kRoundMagic);
  const QVec q = __builtin_convertvector(bits - (0x4B400000 - kOffset), QVec);
  std::memcpy(p, &q, sizeof(q));
}
inline Vec LoadIntegers(const Q* p) {
  QVec q;
  std::memcpy(&q, p, sizeof(q));
  return __builtin_convertvector(__builtin_convertvector(q, IntVec) - kOffset, Vec);
}

// One at a time, for the rest of a row: the same results.
inline float RoundToInt8(float x) {
  x = x > -128.0f ? x : -128.0f;
  x = x < 127.0f ? x : 127.0f;
  return (x + kRoundMagic) - kRoundMagic;
}
inline void PutInteger(Q* p, float x) {
  *p = static_cast<Q>(static_cast<int>(RoundToInt8(x)) + kOffset);
}
inline float IntegerAt(const Q* p) { return static_cast<float>(static_cast<int>(*p) - kOffset); }

// Results of a step in memory: activations of type T, or integers of `scale` times them.
inline void StoreResult(T* p, Vec x, float) { StoreT(p, x); }
inline void StoreResult(Q* p, Vec x, float scale) { StoreIntegers(p, x * scale); }
inline void PutResult(T* p, float x, float) { Put(p, x); }
inline void PutResult(Q* p, float x, float scale) { PutInteger(p, x * scale); }

void Quantize(const QuantizeArgs& g) {
  const int64_t whole = g.n / kLanes * kLanes;
  for (int64_t row = 0; row < g.rows; ++row) {
    const T* x = static_cast<const T*>(g.x) + row * g.n;
    Q* q = static_cast<Q*>(g.q) + row * g.ld_int;
    for (int64_t i = 0; i < whole; i += kLanes) StoreIntegers(q + i, LoadT(x + i) * g.scale);
    for (int64_t i = whole; i < g.n; ++i) PutInteger(q + i, ToFloat(x[i]) * g.scale);
  }
}
