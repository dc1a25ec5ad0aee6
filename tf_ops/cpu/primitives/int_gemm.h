// Products of integers with a right side in panels, and the making of panels.
// Textual, compiled once for each instruction set (isa.h): no include guard.
#ifndef FT_AMX
// What a tile of integers multiplies: rows of steps of kStepBytes bytes, and what each row's sums
// start with besides the columns' values.
struct IntRows {
  const Q* data;
  int64_t ld;
  const int32_t* start;
};
#ifdef FT_INT8_SIGNS
constexpr int64_t kStepBytes = 2 * kGroup;
#else
constexpr int64_t kStepBytes = kGroup;
#endif

// The same of integers: c[R, kIntWidth] = start + a[R, k] * panel[k, kIntWidth]. `start` is row i's
// from i * ld_start on: one row for all, or c itself.
template <int R, int kLines>
void IntTile(const IntRows& a, const int8_t* panel, int64_t steps, const int32_t* start,
             int64_t ld_start, int32_t* c, const char* prefetch, int64_t prefetch_step) {
  IntVec sum[R][kIntVectors];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kIntVectors; ++j) {
      sum[i][j] = LoadInt(start + i * ld_start + j * kLanes);
#ifdef FT_INT8_SIGNS
      sum[i][j] += a.start[i];
#endif
    }
  }
  const Q* x = a.data;
#pragma GCC unroll 2
  for (int64_t s = 0; s < steps; ++s) {
    AskForLines<kLines>(prefetch);
    prefetch += prefetch_step;
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const Factor factor = Repeat(x + i * a.ld);
#pragma GCC unroll 4
      for (int j = 0; j < kIntVectors; ++j) {
        sum[i][j] = AddDot(sum[i][j], factor, panel + j * kGroup * kLanes);
      }
    }
    x += kStepBytes;
    panel += kGroup * kIntWidth;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kIntVectors; ++j) StoreInt(c + i * kIntWidth + j * kLanes, sum[i][j]);
  }
}

using IntTileFn = void (*)(const IntRows&, const int8_t*, int64_t, const int32_t*, int64_t,
                           int32_t*, const char*, int64_t);
template <int kLines, int... kR>
constexpr std::array<IntTileFn, sizeof...(kR)> IntTilesOf(std::integer_sequence<int, kR...>) {
  return {IntTile<kR + 1, kLines>...};
}
using IntTileRowCounts = std::make_integer_sequence<int, kIntRows>;
constexpr auto kIntTiles = IntTilesOf<1>(IntTileRowCounts()),
               kLoneIntTiles = IntTilesOf<LinesOf(kGroup* kIntWidth)>(IntTileRowCounts());
#endif  // FT_AMX

#ifdef FT_INT8_VNNI
constexpr int64_t kHeaderBytes = kIntWidth * 4;
#else
constexpr int64_t kHeaderBytes = 0;
#endif

// What belongs to the columns [col, col + cols) of a panel of integers.
struct IntColumns {
  int64_t col, cols;
  alignas(64) int32_t start[kIntWidth] = {};
  alignas(64) float bias[kIntWidth] = {}, scale[kIntWidth] = {};
  IntColumns(const GemmArgs& g, int64_t first, const char* header)
      : col(first), cols(std::min(kIntWidth, g.cols - first)) {
    if (kHeaderBytes > 0) std::memcpy(start, header, sizeof(start));
    if (g.out != nullptr) std::memcpy(bias, g.bias + col, cols * 4);
    if (g.scale != nullptr) std::memcpy(scale, g.scale + col, cols * 4);
  }
};

// A product's result, for a compiler that may add to it without rounding: integers are the same
// with and without such instructions.
inline Vec Rounded(Vec x) {
#ifdef __FMA__
  asm("" : "+v"(x));
#endif
  return x;
}

// Writes what becomes of a tile's integer sums [rows, kIntWidth].
void StoreIntTile(const GemmArgs& g, const IntColumns& columns, int64_t row, int64_t rows,
                  const int32_t* sums) {
  const int64_t col = columns.col, cols = columns.cols;
  const float unit = g.rounded_unit;
  // The numbers that sums stand for.
  const auto real = [&](int64_t i) {
    const Vec scale = Load(columns.scale + i % kIntWidth);
    const Vec y = Rounded(__builtin_convertvector(LoadInt(sums + i), Vec) * scale);
    return unit != 0.0f ? Rounded(RoundToInt8(y) * unit) : y;
  };
  const int64_t at = row * g.ld_out + col;
  if (g.scale == nullptr) {
    CopySums(g, false, row, rows, col, cols, const_cast<int32_t*>(sums), kIntWidth);
  } else if (g.out == nullptr) {
    float* c = static_cast<float*>(g.c) + row * g.ldc + col;
    for (int64_t i = 0; i < rows; ++i, c += g.ldc) {
      StoreRow<kIntWidth>([&](int64_t j) { return real(i * kIntWidth + j); }, cols, 0.0f, c);
    }
  } else if (g.out_scale != 0.0f) {
    StoreActivated<kIntWidth>(g, real, columns.bias, rows, cols, static_cast<Q*>(g.out) + at);
  } else {
    StoreActivated<kIntWidth>(g, real, columns.bias, rows, cols, static_cast<T*>(g.out) + at);
  }
}

#ifdef FT_INT8_SIGNS
// Elements of a row that are packed at once; the rest of a row is filled up with zeros.
constexpr int64_t kPacked = 32;
// Rows of a call that are packed at once, and then multiplied with all panels.
constexpr int64_t kPackRows = 96;

int64_t IntScratchBytes(int64_t rows, int64_t k) {
  return std::min(rows, kPackRows) * 2 * AlignUp(k, kPacked);
}

// Rows [row, row + rows) of g.a as vpmaddubsw wants them: of each group first the magnitudes, then
// the signs. `start` gets what each row's sums start with.
IntRows PackRows(const GemmArgs& g, int64_t row, int64_t rows, int32_t* start) {
  const IntRows packed = {static_cast<const Q*>(g.scratch), 2 * AlignUp(g.k, kPacked), start};
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t i = 0; i < rows; ++i) {
    const Q* from = static_cast<const Q*>(g.a) + (row + i) * g.lda;
    __m256i* to = reinterpret_cast<__m256i*>(static_cast<Q*>(g.scratch) + i * packed.ld);
    __m256i sums = zero;
    for (int64_t k = 0; k < g.k; k += kPacked, to += 2) {
      __m256i x = zero;
      std::memcpy(&x, from + k, std::min(kPacked, g.k - k));
      const __m256i magnitudes = _mm256_abs_epi8(x), signs = _mm256_cmpgt_epi8(zero, x);
      const __m256i low = _mm256_unpacklo_epi32(magnitudes, signs);
      const __m256i high = _mm256_unpackhi_epi32(magnitudes, signs);
      _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
      sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_and_si256(magnitudes, signs), zero));
    }
    int64_t parts[4];
    std::memcpy(parts, &sums, sizeof(parts));
    start[i] = static_cast<int32_t>(parts[0] + parts[1] + parts[2] + parts[3]);
  }
  return packed;
}
#else
int64_t IntScratchBytes(int64_t, int64_t) { return 0; }
#endif

#ifndef FT_AMX
// Rows [begin, begin + num_rows) of the product, of which `a` are the left sides.
void IntGemmRows(const GemmArgs& g, const IntRows& a, int64_t begin, int64_t num_rows) {
  const RowTiles tiles(num_rows, kIntRows);
  const int64_t steps = (g.k + kGroup - 1) / kGroup;
  const Prefetch ahead(steps * kGroup * kIntWidth, tiles.count(), steps);
  const auto& tile_of = ahead.per_step > kLineBytes ? kLoneIntTiles : kIntTiles;
  alignas(64) int32_t buffer[kIntRows * kIntWidth];
  for (int64_t col = 0; col < g.cols; col += kIntWidth) {
    const char* header = static_cast<const char*>(g.panels) + col / kIntWidth * g.panel_bytes;
    const char* panel = header + kHeaderBytes + g.first_k * kIntWidth;
    const char* const next = NextPanel(g, col + kIntWidth, panel);
    const IntColumns columns(g, col, header);
    for (int64_t tile = 0, row = 0; tile < tiles.count(); row += tiles.rows(tile), ++tile) {
      const int64_t rows = tiles.rows(tile);
      const char* prefetch = next == nullptr ? panel : next + tile * ahead.per_tile;
      if (g.first_k > 0) {
        CopySums(g, true, begin + row, rows, col, columns.cols, buffer, kIntWidth);
      }
      tile_of[rows - 1]({a.data + row * a.ld, a.ld, a.start + row},
                        reinterpret_cast<const int8_t*>(panel), steps,
                        g.first_k > 0 ? buffer : columns.start, g.first_k > 0 ? kIntWidth : 0,
                        buffer, prefetch, next == nullptr ? 0 : ahead.per_step);
      StoreIntTile(g, columns, begin + row, rows, buffer);
    }
  }
}

void IntGemm(const GemmArgs& g) {
  if (g.rows == 0 || g.cols == 0) return;
#ifdef FT_INT8_SIGNS
  int32_t start[kPackRows];
  for (int64_t row = 0; row < g.rows; row += kPackRows) {
    const int64_t rows = std::min(kPackRows, g.rows - row);
    IntGemmRows(g, PackRows(g, row, rows, start), row, rows);
  }
#else
  IntGemmRows(g, {static_cast<const Q*>(g.a), g.lda, nullptr}, 0, g.rows);
#endif
}
#endif  // FT_AMX

// From int8 sources; the header is what takes the activations' offset off again.
void MakeIntPanel(const PanelSource* sources, int64_t source_cols, DataType, int64_t k, int64_t col,
                  int64_t cols, void* panel) {
  int8_t* const to = static_cast<int8_t*>(panel) + kHeaderBytes;
  std::fill_n(to, AlignUp(k, kIntPadding) * kIntWidth, int8_t{0});
  alignas(64) int32_t start[kIntWidth] = {};
  for (int64_t s = 0; s < k; ++s) {
    int8_t* row = to + (s - s % kGroup) * kIntWidth + s % kGroup;
    for (int64_t j = 0; j < cols; ++j) {
      const PanelSource& source = sources[(col + j) / source_cols];
      const int8_t value =
          static_cast<const int8_t*>(source.data)[s * source.ld + (col + j) % source_cols];
      row[j * kGroup] = value;
      start[j] -= kOffset * value;
    }
  }
  if (kHeaderBytes > 0) std::memcpy(panel, start, sizeof(start));
}
