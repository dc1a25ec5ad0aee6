// Integers of INT8 (docs/int8.md): rounding, storing, and the dot product of the instruction set.
// Textual, compiled once for each instruction set (isa.h): no include guard.
//
// Q is the type in memory of what is int8 in docs/int8.md, kOffset what is added to it there, and
// kGroup how many products one step of a sum adds up.
//
// vpdpbusd multiplies four uint8 by four int8 and adds exactly. Before it there is vpmaddubsw,
// which adds up two such products in int16 and saturates: of activations + 128 they do not fit.
// Magnitudes do, |x| <= 128 and |w| <= 128 give 2^15 at most: x w is |x| (w ^ s) + (s ? |x| : 0),
// where s, x's sign, is a byte of ones or of zeros, as ^ makes -w - 1 of w. (A sum of two is 2^15
// itself only as -128 * 128 * 2, which int16 has.) The second part is the same for all columns: a
// row's sums start with it. Both registers of a step, |x| and s, are made once for each call of the
// product (PackRows). vpsignb would negate w itself, but waits for the same units as the
// multiplications.
#ifdef FT_INT8_VNNI
using Q = uint8_t;
constexpr int kOffset = 128;
constexpr int64_t kGroup = 4;
constexpr DataType kIntType = DataType::kUint8;
#else
using Q = int8_t;
constexpr int kOffset = 0;
constexpr DataType kIntType = DataType::kInt8;
#if FT_LANES >= 8
#define FT_INT8_SIGNS
constexpr int64_t kGroup = 4;
#else
constexpr int64_t kGroup = 2;
#endif
#endif
// What a sum's length is filled up to with zeros in a panel.
#ifdef FT_AMX
constexpr int64_t kIntPadding = 64;
#else
constexpr int64_t kIntPadding = kGroup;
#endif
// Rows, and registers of columns, of a tile of sums. Of AVX2's sixteen registers vpmaddubsw wants
// three besides the sums and the ones that it multiplies with; measured on a Zen 3, for as many
// products: 3 x 4 13.6 cycles, 4 x 3 13.8, 6 x 2 14.5, 5 x 2 14.6.
#if defined(FT_INT8_SIGNS) && FT_LANES == 8
constexpr int kIntRows = 3, kIntVectors = 4;
#else
constexpr int kIntRows = kRows, kIntVectors = 2;
#endif
constexpr int64_t kIntWidth = kIntVectors * kLanes;

// kLanes numbers in int8's range, plus kOffset, to memory and back. By intrinsics, as GCC 12 makes
// most of these conversions of vectors one element at a time.
inline void StoreBytes(Q* p, IntVec x) {
#if FT_LANES == 16 && !defined(FT_PLAIN_TILES)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)x));
#elif FT_LANES == 8
  const __m256i wide = (__m256i)x;
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i bytes =
      kOffset == 0 ? _mm_packs_epi16(words, words) : _mm_packus_epi16(words, words);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
#else
  for (int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<Q>(x[i]);
#endif
}
inline IntVec LoadBytes(const Q* p) {
#if FT_LANES == 16 && !defined(FT_PLAIN_TILES)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (IntVec)(kOffset == 0 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif FT_LANES == 8
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (IntVec)(kOffset == 0 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
  IntVec x;
  for (int64_t i = 0; i < kLanes; ++i) x[i] = p[i];
  return x;
#endif
}

#ifndef FT_AMX
// What one row of a step multiplies with: kGroup activations, in all lanes; and kLanes columns of a
// panel.
inline int32_t LoadGroup(const void* p) {
  int32_t group;
  std::memcpy(&group, p, sizeof(group));
  return group;
}
#if defined(FT_INT8_VNNI) && FT_LANES == 16
using Factor = __m512i;
inline Factor Repeat(const Q* p) { return _mm512_set1_epi32(LoadGroup(p)); }
inline IntVec AddDot(IntVec sum, Factor x, const int8_t* columns) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, x, _mm512_loadu_si512(columns));
}
#elif defined(FT_INT8_VNNI)
using Factor = __m256i;
inline Factor Repeat(const Q* p) { return _mm256_set1_epi32(LoadGroup(p)); }
inline IntVec AddDot(IntVec sum, Factor x, const int8_t* columns) {
  return (IntVec)_mm256_dpbusd_avx_epi32(
      (__m256i)sum, x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns)));
}
#elif FT_LANES == 16
struct Factor {
  __m512i magnitudes, signs;
};
inline Factor Repeat(const Q* p) {
  return {_mm512_set1_epi32(LoadGroup(p)), _mm512_set1_epi32(LoadGroup(p + kGroup))};
}
inline IntVec AddDot(IntVec sum, Factor x, const int8_t* columns) {
  const __m512i w = _mm512_xor_si512(x.signs, _mm512_loadu_si512(columns));
  const __m512i pairs = _mm512_maddubs_epi16(x.magnitudes, w);
  return sum + (IntVec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#elif FT_LANES == 8
struct Factor {
  __m256i magnitudes, signs;
};
inline Factor Repeat(const Q* p) {
  return {_mm256_set1_epi32(LoadGroup(p)), _mm256_set1_epi32(LoadGroup(p + kGroup))};
}
inline IntVec AddDot(IntVec sum, Factor x, const int8_t* columns) {
  // The sums take twelve of sixteen registers: the columns have to come from memory, each time.
  __m256i w;
  asm("vpxor %2, %1, %0"
      : "=x"(w)
      : "x"(x.signs), "m"(*reinterpret_cast<const __m256i_u*>(columns)));
  const __m256i pairs = _mm256_maddubs_epi16(x.magnitudes, w);
  return sum + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
struct Factor {
  int32_t even, odd;
};
inline Factor Repeat(const Q* p) { return {p[0], p[1]}; }
inline IntVec AddDot(IntVec sum, Factor x, const int8_t* columns) {
  for (int64_t i = 0; i < kLanes; ++i) {
    sum[i] += x.even * columns[2 * i] + x.odd * columns[2 * i + 1];
  }
  return sum;
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
  StoreBytes(p, bits - (0x4B400000 - kOffset));
}
inline Vec LoadIntegers(const Q* p) { return __builtin_convertvector(LoadBytes(p) - kOffset, Vec); }

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
#ifdef FT_COMPUTE_BFLOAT16
inline void StoreResult(float* p, Vec x, float) { Store(p, x); }
inline void PutResult(float* p, float x, float) { Put(p, x); }
#endif
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
