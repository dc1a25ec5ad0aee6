// Tile registers, for products of int8 and of bfloat16: AMX, or the same in plain C++
// (FT_PLAIN_TILES), by which tests check the algebra on processors without it. Textual, compiled
// once for each instruction set (isa.h): no include guard.
//
// A tile is at most 16 rows of 64 bytes. tiles::Dot adds A B to C: A[rows, 64 bytes], B[16, 64
// bytes] in groups of four bytes, as panels have them, C[rows, 16]. Names are Intel's numbers: 0 to
// 3 are the four parts of C, two rows of tiles by two columns; 4 and 5 of A; 6 and 7 of B. Source:
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG, TILELOADD,
// TDPBUSD, TDPBF16PS.
namespace tiles {

constexpr int64_t kTileRows = 16, kTileBytes = 64;

// The shapes of the eight tiles: rows_0 rows in the first row of tiles, rows_1 in the second.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  Config(int64_t rows_0, int64_t rows_1) {
    const int64_t by_tile[8] = {rows_0, rows_0, rows_1,    rows_1,
                                rows_0, rows_1, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i) {
      // A tile without rows is not used; the register wants a shape all the same.
      rows[i] = static_cast<uint8_t>(by_tile[i] > 0 ? by_tile[i] : 1);
      row_bytes[i] = kTileBytes;
    }
  }
};

#ifndef FT_PLAIN_TILES
// For the calling thread, until the end of its scope.
class Scope {
 public:
  explicit Scope(const Config& config) { _tile_loadconfig(&config); }
  ~Scope() { _tile_release(); }
};
// Written out, as GCC's intrinsics take a tile's number as text, which a template has not.
template <int I>
inline void Load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(I) : "memory");
}
template <int I>
inline void Store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(I) : "memory");
}
template <int I>
inline void Zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(I));
}
template <int C, int A, int B>
inline void DotIntegers() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void DotBfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
#else
struct Registers {
  Config config{0, 0};
  uint8_t data[8][kTileRows][kTileBytes];
};
inline Registers& Current() {
  static thread_local Registers registers;
  return registers;
}
class Scope {
 public:
  explicit Scope(const Config& config) { Current().config = config; }
};
template <int I>
inline void Load(const void* p, int64_t stride) {
  for (int row = 0; row < Current().config.rows[I]; ++row) {
    std::memcpy(Current().data[I][row], static_cast<const char*>(p) + row * stride, kTileBytes);
  }
}
template <int I>
inline void Store(void* p, int64_t stride) {
  for (int row = 0; row < Current().config.rows[I]; ++row) {
    std::memcpy(static_cast<char*>(p) + row * stride, Current().data[I][row], kTileBytes);
  }
}
template <int I>
inline void Zero() {
  std::memset(Current().data[I], 0, sizeof(Current().data[I]));
}
// c[row, column] += sum over groups of what add(c, a's group, b's group) adds.
template <int C, int A, int B, typename Number, typename Add>
inline void Dot(Add add) {
  Registers& r = Current();
  for (int row = 0; row < r.config.rows[C]; ++row) {
    for (int64_t group = 0; group < kTileRows; ++group) {
      for (int64_t column = 0; column < 16; ++column) {
        Number c;
        std::memcpy(&c, r.data[C][row] + 4 * column, 4);
        add(&c, r.data[A][row] + 4 * group, r.data[B][group] + 4 * column);
        std::memcpy(r.data[C][row] + 4 * column, &c, 4);
      }
    }
  }
}
template <int C, int A, int B>
inline void DotIntegers() {
  Dot<C, A, B, int32_t>([](int32_t* c, const uint8_t* a, const uint8_t* b) {
    for (int i = 0; i < 4; ++i) *c += a[i] * static_cast<int8_t>(b[i]);
  });
}
template <int C, int A, int B>
inline void DotBfloat16() {
  Dot<C, A, B, float>([](float* c, const uint8_t* a, const uint8_t* b) {
    for (int i = 0; i < 2; ++i) {
      Bfloat16 x, y;
      std::memcpy(&x, a + 2 * i, 2);
      std::memcpy(&y, b + 2 * i, 2);
      *c += FromBfloat16(x) * FromBfloat16(y);
    }
  });
}
#endif

// What a product asks the caches for meanwhile: `step_bytes` bytes a step, from `next` on.
struct Ahead {
  const char* next = nullptr;
  int64_t step_bytes = 0;
};

// c[rows, 32] of 4-byte sums, row stride ld_c, = start + a[rows, 64 bytes * steps] times a panel of
// 32 columns. `start` is one row of 32 for all rows (ld_start 0), or one for each, or null: 0.
// `kRowTiles`: 1 of up to 16 rows, 2 of 17 to 32; a Scope has their rows.
template <int kRowTiles, bool kIntegers>
void Multiply(const void* a, int64_t row_bytes, const void* panel, int64_t steps, const void* start,
              int64_t ld_start, void* c, int64_t ld_c, Ahead ahead) {
  constexpr int64_t kColumnBytes = 64, kPanelRow = 2 * kColumnBytes;
  const char* from = static_cast<const char*>(start);
  if (start == nullptr) {
    Zero<0>();
    Zero<1>();
    if (kRowTiles == 2) {
      Zero<2>();
      Zero<3>();
    }
  } else {
    Load<0>(from, ld_start * 4);
    Load<1>(from + kColumnBytes, ld_start * 4);
    if (kRowTiles == 2) {
      const char* second = from + kTileRows * ld_start * 4;
      Load<2>(second, ld_start * 4);
      Load<3>(second + kColumnBytes, ld_start * 4);
    }
  }
  const char* x = static_cast<const char*>(a);
  const char* y = static_cast<const char*>(panel);
  // Panels come from the second-level cache: without this a step takes a fifth longer where another
  // thread shares the core (benchmarks/results/cpu_tiles_2026-11-28.md).
  constexpr int64_t kStepsAhead = 2;
  for (int64_t s = 0; s < steps; ++s, x += kTileBytes, y += kTileRows * kPanelRow) {
    Load<6>(y, kPanelRow);
    Load<4>(x, row_bytes);
    Load<7>(y + kColumnBytes, kPanelRow);
    if (kRowTiles == 2) Load<5>(x + kTileRows * row_bytes, row_bytes);
    for (int64_t at = 0; at < kTileRows * kPanelRow; at += 64) {
      __builtin_prefetch(y + kStepsAhead * kTileRows * kPanelRow + at, 0, 3);
    }
    for (int64_t at = 0; at < ahead.step_bytes; at += 64) {
      __builtin_prefetch(ahead.next + at, 0, 2);
    }
    ahead.next += ahead.step_bytes;
    if (kIntegers) {
      DotIntegers<0, 4, 6>();
      DotIntegers<1, 4, 7>();
      if (kRowTiles == 2) {
        DotIntegers<2, 5, 6>();
        DotIntegers<3, 5, 7>();
      }
    } else {
      DotBfloat16<0, 4, 6>();
      DotBfloat16<1, 4, 7>();
      if (kRowTiles == 2) {
        DotBfloat16<2, 5, 6>();
        DotBfloat16<3, 5, 7>();
      }
    }
  }
  char* to = static_cast<char*>(c);
  Store<0>(to, ld_c * 4);
  Store<1>(to + kColumnBytes, ld_c * 4);
  if (kRowTiles == 2) {
    Store<2>(to + kTileRows * ld_c * 4, ld_c * 4);
    Store<3>(to + kTileRows * ld_c * 4 + kColumnBytes, ld_c * 4);
  }
}

}  // namespace tiles
