// Products on tile registers.
// Textual, compiled once for each instruction set (isa.h): no include guard.
constexpr int64_t kTilePairRows = 2 * tiles::kTileRows;

// One row of tiles, or two, of a product: `rows` rows from `row` on, all columns.
template <int kRowTiles, bool kIntegers>
void TileRows(const GemmArgs& g, int64_t begin, int64_t end, int64_t rows) {
  using Element = std::conditional_t<kIntegers, Q, T>;
  constexpr int64_t kBytes = sizeof(Element);
  const int64_t steps = (g.k * kBytes + tiles::kTileBytes - 1) / tiles::kTileBytes;
  const Element* a = static_cast<const Element*>(g.a);
  const tiles::Scope scope(tiles::Config(std::min(rows, tiles::kTileRows),
                                         std::max<int64_t>(rows - tiles::kTileRows, 0)));
  // A step of a panel is this long.
  constexpr int64_t kStepBytes = tiles::kTileRows * kWidth * 4;
  const Prefetch share(steps * kStepBytes, std::max<int64_t>(1, (end - begin) / rows), steps);
  alignas(64) int32_t buffer[kTilePairRows * kWidth];
  for (int64_t col = 0; col < g.cols; col += kWidth) {
    const char* header = static_cast<const char*>(g.panels) + col / kWidth * g.panel_bytes;
    const char* panel =
        header + (kIntegers ? kHeaderBytes : 0) + g.first_k * kWidth * (kIntegers ? 1 : kBytes);
    const int64_t cols = std::min(kWidth, g.cols - col);
    const char* const next = NextPanel(g, col + kWidth, panel);
    const IntColumns columns(g, col, header);
    // Sums that nothing is done to go from and to the result itself.
    const bool whole = cols == kWidth;
    const bool direct = whole && g.out == nullptr && g.scale == nullptr;
    for (int64_t row = begin; row < end; row += rows) {
      float* const result = static_cast<float*>(g.c) + row * g.ldc + col;
      const void* start = kIntegers ? columns.start : nullptr;
      int64_t ld_start = 0;
      if (g.first_k > 0 && whole) {
        start = result;
        ld_start = g.ldc;
      } else if (g.first_k > 0) {
        CopySums(g, true, row, rows, col, cols, buffer, kWidth);
        start = buffer;
        ld_start = kWidth;
      }
      tiles::Ahead ahead;
      if (next != nullptr) {
        ahead.next = next + (row - begin) / rows * share.per_tile;
        ahead.step_bytes = share.per_step;
      }
      tiles::Multiply<kRowTiles, kIntegers>(a + row * g.lda, g.lda * kBytes, panel, steps, start,
                                            ld_start, direct ? static_cast<void*>(result) : buffer,
                                            direct ? g.ldc : kWidth, ahead);
      if (direct) continue;
      if (kIntegers) {
        StoreIntTile(g, columns, row, rows, buffer);
      } else if (g.out != nullptr) {
        const float* const sums = reinterpret_cast<float*>(buffer);
        StoreActivated<kWidth>(
            g, [&](int64_t i) { return Load(sums + i); }, columns.bias, rows, cols,
            static_cast<T*>(g.out) + row * g.ld_out + col);
      } else {
        CopySums(g, false, row, rows, col, cols, buffer, kWidth);
      }
    }
  }
}

// Rows in pairs of tiles, and then the rest of them: two configurations, as making one takes long.
template <bool kIntegers>
void TileGemm(const GemmArgs& g) {
  if (g.rows == 0 || g.cols == 0) return;
  const int64_t whole = g.rows / kTilePairRows * kTilePairRows, rest = g.rows - whole;
  if (whole > 0) TileRows<2, kIntegers>(g, 0, whole, kTilePairRows);
  if (rest > tiles::kTileRows) {
    TileRows<2, kIntegers>(g, whole, g.rows, rest);
  } else if (rest > 0) {
    TileRows<1, kIntegers>(g, whole, g.rows, rest);
  }
}
