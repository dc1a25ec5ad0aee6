// Registers, conversions and elements of the compute type.
// Textual, compiled once for each instruction set (isa.h): no include guard.
typedef float Vec __attribute__((vector_size(4 * FT_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * FT_LANES)));

constexpr int64_t kLanes = FT_LANES;
constexpr int64_t kWidth = 2 * kLanes;  // panel width: two registers
// Rows of a tile: kRows x 2 sums stay in registers (32 with AVX-512, 16 before), next to two
// registers of the panel and one of the left side.
constexpr int kRows = FT_LANES == 16 ? 12 : 6;
// Measured: AVX-512 on a Zen 5 (L2 1 MiB), the others on a Zen 3 (L2 512 KiB).
constexpr int64_t kInnerChunk = 768;  // of float32 or bfloat16
constexpr int64_t kBlockRows = FT_LANES == 16 ? 144 : 96;
// Measured on 16 CPUs of an Emerald Rapids Xeon (L2 2 MiB): 64 rows a thread take 136 ms as a grid
// and 169 by rows in float32, 42 and 41 in bfloat16; 192 rows 437, 548, 108 and 121.
#ifdef FT_AMX
constexpr int64_t kMinRowsPerThread = 256;
#else
constexpr int64_t kMinRowsPerThread = 96;
#endif
constexpr int64_t kGridRows = 128;

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
inline IntVec LoadInt(const int32_t* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void StoreInt(int32_t* p, IntVec v) { std::memcpy(p, &v, sizeof(v)); }
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
#if defined(FT_COMPUTE_BFLOAT16) && defined(FT_PLAIN_TILES)
inline Vec LoadT(const T* p) {
  Vec v;
  for (int64_t i = 0; i < kLanes; ++i) v[i] = FromBfloat16(p[i]);
  return v;
}
inline void StoreT(T* p, Vec v) {
  for (int64_t i = 0; i < kLanes; ++i) p[i] = ToBfloat16(v[i]);
}
#elif defined(FT_COMPUTE_BFLOAT16)
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
