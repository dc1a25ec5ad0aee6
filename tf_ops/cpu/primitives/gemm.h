// Products with a right side in panels, and the making of panels.
// Textual, compiled once for each instruction set (isa.h): no include guard.
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
