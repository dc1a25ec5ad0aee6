// Products of floats with a right side in panels, the making of panels, and what products of
// integers share with them.
// Textual, compiled once for each instruction set (isa.h): no include guard.
// Steps of a sum that are added up in registers before they are added to the sum so far: float32
// errors grow with the length of a chain of additions. Over 12 layers of BERT-base 128 gives 0.86
// times the error of TensorFlow's own graph, where chains of 768 gave 2.2 times; no time was lost.
constexpr int64_t kChainSteps = 128;

constexpr int64_t kLineBytes = 64;

constexpr int LinesOf(int64_t bytes) {
  return static_cast<int>((bytes + kLineBytes - 1) / kLineBytes);
}

template <int kLines>
inline void AskForLines(const char* p) {
  for (int i = 0; i < kLines; ++i) __builtin_prefetch(p + i * kLineBytes, 0, 2);
}

// c[R, kWidth] (+)= a[R, k] * panel[k, kWidth]; `steps` is k / kPair. Meanwhile asks for
// `prefetch_step` bytes a step from `prefetch` on, kLines lines: the next panel, so that its way
// from memory overlaps with arithmetic (what makes few rows fast).
template <int R, int kLines>
void Tile(const T* a, int64_t lda, const T* panel, int64_t steps, float* c, int64_t ldc,
          bool accumulate, const char* prefetch, int64_t prefetch_step) {
  do {
    const int64_t chain = std::min(steps, kChainSteps);
    Vec sum[R][2];
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      sum[i][0] = Vec{};
      sum[i][1] = Vec{};
    }
    for (int64_t s = 0; s < chain; ++s) {
      AskForLines<kLines>(prefetch);
      prefetch += prefetch_step;
#if defined(FT_COMPUTE_BFLOAT16) && defined(FT_PLAIN_TILES)
      for (int i = 0; i < R; ++i) {
        for (int64_t j = 0; j < 2 * kWidth; ++j) {
          const float x = FromBfloat16(a[i * lda + 2 * s + j % 2]);
          sum[i][j / 2 / kLanes][j / 2 % kLanes] += x * FromBfloat16(panel[j]);
        }
      }
#elif defined(FT_COMPUTE_BFLOAT16)
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
      float* row = c + i * ldc;
      Store(row, accumulate ? sum[i][0] + Load(row) : sum[i][0]);
      Store(row + kLanes, accumulate ? sum[i][1] + Load(row + kLanes) : sum[i][1]);
    }
    a += kPair * chain;
    steps -= chain;
    accumulate = true;
  } while (steps > 0);
}

using TileFn = void (*)(const T*, int64_t, const T*, int64_t, float*, int64_t, bool, const char*,
                        int64_t);
template <int kLines, int... kR>
constexpr std::array<TileFn, sizeof...(kR)> TilesOf(std::integer_sequence<int, kR...>) {
  return {Tile<kR + 1, kLines>...};
}
// [r - 1] computes r rows. A tile that has a panel for itself asks for as much of the next one as
// it multiplies itself; several tiles' shares are a line a step or less.
using TileRowCounts = std::make_integer_sequence<int, kRows>;
constexpr auto kTiles = TilesOf<1>(TileRowCounts()),
               kLoneTiles = TilesOf<LinesOf(kPair* kWidth * sizeof(T))>(TileRowCounts());

// Tiles of so many rows and more have sums enough to keep the multipliers busy.
constexpr int64_t kRowStep = 4;

// Deals rows to the fewest tiles that hold them, equally but for one row: 13 rows are 7 + 6 and not
// 12 + 1, as a tile of one row takes nearly the time of a full one.
class RowTiles {
 public:
  explicit RowTiles(int64_t rows, int64_t most = kRows)
      : count_((rows + most - 1) / most),
        rows_(count_ > 0 ? rows / count_ : 0),
        larger_(count_ > 0 ? rows % count_ : 0) {}
  int64_t count() const { return count_; }
  int64_t rows(int64_t tile) const { return rows_ + (tile < larger_ ? 1 : 0); }

 private:
  int64_t count_, rows_, larger_;  // the first larger_ tiles have a row more
};

// Writes the first `cols` of a row's vectors y(0), y(kLanes), ... as T or as integers.
template <int64_t kTileWidth, typename Out, typename Y>
inline void StoreRow(Y y, int64_t cols, float out_scale, Out* out) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < kTileWidth; j += kLanes) {
    if (j + kLanes <= cols) {
      StoreResult(out + j, y(j), out_scale);
    } else if (j < cols) {
      alignas(64) float lanes[kLanes];
      Store(lanes, y(j));
      for (int64_t i = j; i < cols; ++i) PutResult(out + i, lanes[i - j], out_scale);
    }
  }
}

// out[rows, cols] = activation(x + bias) of a tile's sums [rows, kTileWidth], as T or as integers;
// x(i) are those from element i of the tile on. `bias` has kTileWidth elements.
template <int64_t kTileWidth, typename Out, typename X>
void StoreActivated(const GemmArgs& g, X x, const float* bias, int64_t rows, int64_t cols,
                    Out* out) {
  // As a compiler does not know what a store of bytes changes.
  const Activation activation = g.activation;
  const bool activates = g.apply_activation;
  const float out_scale = g.out_scale;
  const int64_t ld_out = g.ld_out;
  for (int64_t i = 0; i < rows; ++i, out += ld_out) {
    const auto y = [&](int64_t j) {
      const Vec sum = x(i * kTileWidth + j) + Load(bias + j);
      return activates ? ActivateTo<Out>(sum, activation) : sum;
    };
    StoreRow<kTileWidth>(y, cols, out_scale, out);
  }
}

// The next panel's way from memory overlaps with the arithmetic on one: each tile asks for its
// share, rounded up so that no line is left out.
struct Prefetch {
  int64_t per_tile, per_step;
  Prefetch(int64_t chunk_bytes, int64_t tiles, int64_t steps)
      : per_tile((chunk_bytes + tiles - 1) / tiles),
        per_step(steps ? (per_tile + steps - 1) / steps : 0) {}
};

// The panel after `panel`, which ends before column `end`, or null.
inline const char* NextPanel(const GemmArgs& g, int64_t end, const char* panel) {
  return end < g.cols ? panel + g.panel_bytes : static_cast<const char*>(g.next_panel);
}

// Sums of earlier chunks, [rows, cols] from row `row` on, into a dense tile of `width` columns, and
// back.
void CopySums(const GemmArgs& g, bool to_tile, int64_t row, int64_t rows, int64_t col, int64_t cols,
              void* tile, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    char* const dense = static_cast<char*>(tile) + i * width * 4;
    char* const result = static_cast<char*>(g.c) + ((row + i) * g.ldc + col) * 4;
    std::memcpy(to_tile ? dense : result, to_tile ? result : dense, cols * 4);
  }
}

#if !defined(FT_AMX) || !defined(FT_COMPUTE_BFLOAT16)
void Gemm(const GemmArgs& g) {
  if (g.rows == 0 || g.cols == 0) return;
  const RowTiles tiles(g.rows);
  const int64_t steps = (g.k + kPair - 1) / kPair;
  const Prefetch ahead(steps * kPair * kWidth * static_cast<int64_t>(sizeof(T)), tiles.count(),
                       steps);
  const auto& tile_of = ahead.per_step > kLineBytes ? kLoneTiles : kTiles;
  const bool accumulate = g.first_k > 0;
  alignas(64) float buffer[kRows * kWidth];
  alignas(64) float bias[kWidth] = {};
  for (int64_t col = 0; col < g.cols; col += kWidth) {
    const char* panel = static_cast<const char*>(g.panels) + col / kWidth * g.panel_bytes +
                        g.first_k * kWidth * static_cast<int64_t>(sizeof(T));
    const int64_t cols = std::min(kWidth, g.cols - col);
    const char* const next = NextPanel(g, col + kWidth, panel);
    const bool direct = g.out == nullptr && cols == kWidth;
    if (g.out != nullptr) std::memcpy(bias, g.bias + col, cols * 4);
    for (int64_t tile = 0, row = 0; tile < tiles.count(); row += tiles.rows(tile), ++tile) {
      const int64_t rows = tiles.rows(tile);
      const char* prefetch = next == nullptr ? panel : next + tile * ahead.per_tile;
      float* c = direct ? static_cast<float*>(g.c) + row * g.ldc + col : buffer;
      const int64_t ldc = direct ? g.ldc : kWidth;
      if (!direct && accumulate) CopySums(g, true, row, rows, col, cols, buffer, kWidth);
      tile_of[rows - 1](static_cast<const T*>(g.a) + row * g.lda, g.lda,
                        reinterpret_cast<const T*>(panel), steps, c, ldc, accumulate, prefetch,
                        next == nullptr ? 0 : ahead.per_step);
      if (direct) continue;
      if (g.out != nullptr) {
        StoreActivated<kWidth>(
            g, [&](int64_t i) { return Load(buffer + i); }, bias, rows, cols,
            static_cast<T*>(g.out) + row * g.ld_out + col);
        continue;
      }
      CopySums(g, false, row, rows, col, cols, buffer, kWidth);
    }
  }
}
#endif

void MakePanel(const PanelSource* sources, int64_t source_cols, DataType dtype, int64_t k,
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
