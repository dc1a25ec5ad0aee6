// Attention of one head.
// Textual, compiled once for each instruction set (isa.h): no include guard.
//
// Its two products run on tile registers where those of T do. kQueries queries are taken at a time,
// and sums are as long as a multiple of kDepth.
#if defined(FT_AMX) && defined(FT_COMPUTE_BFLOAT16)
#define FT_TILE_ATTENTION
constexpr int64_t kQueries = kTilePairRows, kDepth = tiles::kTileBytes / sizeof(T);
#else
constexpr int64_t kQueries = kRows, kDepth = kPair;
#endif

// to[kLanes][kWidth] = the transpose of from[kLanes][kLanes], in steps of kPair elements: of a
// panel, kLanes columns and kLanes steps.
inline void TransposeSteps(const T* from, int64_t ld, T* to) {
  static_assert(kPair * sizeof(T) == sizeof(int32_t));
  IntVec x[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) std::memcpy(&x[i], from + i * ld, sizeof(IntVec));
  // In step h, what rows i and i + h have in the wrong half of 2h columns changes places.
#pragma GCC unroll 8
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    IntVec low, high;
#pragma GCC unroll 16
    for (int64_t j = 0; j < kLanes; ++j) {
      const bool second = (j & half) != 0;
      low[j] = static_cast<int32_t>(second ? kLanes + j - half : j);
      high[j] = static_cast<int32_t>(second ? kLanes + j : j + half);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      if ((i & half) != 0) continue;
      const IntVec a = x[i], b = x[i + half];
      x[i] = __builtin_shuffle(a, b, low);
      x[i + half] = __builtin_shuffle(a, b, high);
    }
  }
  for (int64_t i = 0; i < kLanes; ++i) std::memcpy(to + i * kPair * kWidth, &x[i], sizeof(IntVec));
}

#ifdef FT_COMPUTE_BFLOAT16
// One step of a panel: the elements of two rows in turn.
inline void InterleaveRows(const T* from, int64_t ld, T* to) {
  typedef uint16_t Pairs __attribute__((vector_size(2 * kWidth)));
  Pairs a, b, low, high;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + ld, sizeof(b));
  for (int64_t j = 0; j < kWidth; ++j) {
    low[j] = static_cast<uint16_t>(j / 2 + j % 2 * kWidth);
    high[j] = static_cast<uint16_t>(kLanes + j / 2 + j % 2 * kWidth);
  }
  const Pairs first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
  std::memcpy(to, &first, sizeof(first));
  std::memcpy(to + kWidth, &second, sizeof(second));
}
#else
// One step of a panel: a row.
inline void InterleaveRows(const T* from, int64_t, T* to) {
  std::memcpy(to, from, kWidth * sizeof(T));
}
#endif

// The right sides of a head's products in panels, and what a tile of its queries needs.
struct AttentionScratch {
  int64_t padded_keys, padded_size;  // whole panels
  int64_t size, keys;                // multiples of kDepth: the lengths of the products' sums
  int64_t k_panels, v_panels, queries, scores, probabilities, context, total;  // bytes
};

AttentionScratch PlanAttention(int64_t num_keys, int64_t head_size) {
  AttentionScratch s;
  s.padded_keys = AlignUp(num_keys, kWidth);
  s.padded_size = AlignUp(head_size, kWidth);
  s.size = AlignUp(head_size, kDepth);
  s.keys = AlignUp(num_keys, kDepth);
  const int64_t element = sizeof(T);
  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += AlignUp(bytes, 64);
    return begin;
  };
  s.k_panels = take(s.padded_keys * s.size * element);
  s.v_panels = take(s.padded_size * s.padded_keys * element);
  // Queries with zeros behind them, where the sum is longer than a head.
  s.queries = s.size > head_size ? take(kQueries * s.size * element) : 0;
  s.scores = take(kQueries * s.padded_keys * 4);
  s.probabilities = kPair == 1 ? s.scores : take(kQueries * s.padded_keys * element);
  s.context = take(kQueries * s.padded_size * 4);
  s.total = at;
  return s;
}

int64_t AttentionScratchBytes(int64_t num_keys, int64_t head_size) {
  return PlanAttention(num_keys, head_size).total;
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
    Vec e = difference < -87.0f ? Vec{} : ExpForT(difference);
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

// k^T in panels: panel p has the keys [p * kWidth, ...), in steps of kPair elements.
void MakeKeyPanels(const AttentionArgs& g, const AttentionScratch& plan, T* panels) {
  const T* k = static_cast<const T*>(g.k);
  for (int64_t panel = 0; panel < plan.padded_keys / kWidth; ++panel) {
    T* to = panels + panel * plan.size * kWidth;
    const int64_t keys = std::min(kWidth, g.num_keys - panel * kWidth);
    if (keys < kWidth || g.head_size < plan.size) std::fill_n(to, plan.size * kWidth, T{});
    int64_t whole = 0;  // of the head's elements
    if (keys == kWidth) {
      whole = g.head_size / (kPair * kLanes) * (kPair * kLanes);
      for (int64_t j = 0; j < kWidth; j += kLanes) {
        for (int64_t d = 0; d < whole; d += kPair * kLanes) {
          TransposeSteps(k + (panel * kWidth + j) * g.ld + d, g.ld, to + d * kWidth + j * kPair);
        }
      }
    }
    for (int64_t j = 0; j < keys; ++j) {
      const T* from = k + (panel * kWidth + j) * g.ld;
      for (int64_t d = whole; d < g.head_size; d += kPair) {
        std::memcpy(to + d * kWidth + j * kPair, from + d, sizeof(T) * kPair);
      }
    }
  }
}

// v in panels: panel p has the head's elements [p * kWidth, ...), in steps of kPair keys.
void MakeValuePanels(const AttentionArgs& g, const AttentionScratch& plan, T* panels) {
  const T* v = static_cast<const T*>(g.v);
  for (int64_t panel = 0; panel < plan.padded_size / kWidth; ++panel) {
    T* to = panels + panel * plan.keys * kWidth;
    const int64_t cols = std::min(kWidth, g.head_size - panel * kWidth);
    if (cols < kWidth || plan.keys > g.num_keys) std::fill_n(to, plan.keys * kWidth, T{});
    int64_t whole = 0;  // keys
    if (cols == kWidth) {
      whole = g.num_keys / kPair * kPair;
      for (int64_t j = 0; j < whole; j += kPair) {
        InterleaveRows(v + j * g.ld + panel * kWidth, g.ld, to + j * kWidth);
      }
    }
    for (int64_t j = whole; j < g.num_keys; ++j) {
      const T* from = v + j * g.ld + panel * kWidth;
      T* row = to + (j - j % kPair) * kWidth + j % kPair;
      for (int64_t d = 0; d < cols; ++d) row[d * kPair] = from[d];
    }
  }
}

// c[rows, n] = a[rows, k] times panels [n / kWidth][k][kWidth]; k is a multiple of kDepth.
void AttentionProduct(const T* a, int64_t lda, const T* panels, int64_t k, int64_t rows, float* c,
                      int64_t n) {
#ifdef FT_TILE_ATTENTION
  constexpr int64_t kOne = tiles::kTileRows;
  const tiles::Scope scope(tiles::Config(std::min(rows, kOne), std::max<int64_t>(rows - kOne, 0)));
  const auto multiply = rows > kOne ? tiles::Multiply<2, false> : tiles::Multiply<1, false>;
  for (int64_t j = 0; j < n; j += kWidth) {
    multiply(a, lda * sizeof(T), panels + j * k, k / kDepth, nullptr, 0, c + j, n, {});
  }
#else
  for (int64_t j = 0; j < n; j += kWidth) {
    kTiles[rows - 1](a, lda, panels + j * k, k / kPair, c + j, n, false,
                     reinterpret_cast<const char*>(panels), 0);
  }
#endif
}

// softmax(q k^T * scale + (1 - mask) * -10000) v of one head of one sequence, kQueries queries at a
// time: only a tile of scores ever exists.
template <typename Out>
void AttentionTo(const AttentionArgs& g, Out* out) {
  const AttentionScratch plan = PlanAttention(g.num_keys, g.head_size);
  char* scratch = static_cast<char*>(g.scratch);
  T* k_panels = reinterpret_cast<T*>(scratch + plan.k_panels);
  T* v_panels = reinterpret_cast<T*>(scratch + plan.v_panels);
  T* queries = reinterpret_cast<T*>(scratch + plan.queries);
  float* scores = reinterpret_cast<float*>(scratch + plan.scores);
  T* probabilities = reinterpret_cast<T*>(scratch + plan.probabilities);
  float* context = reinterpret_cast<float*>(scratch + plan.context);
  if (g.num_keys == 0) {
    for (int64_t i = 0; i < g.num_queries; ++i) {
      for (int64_t d = 0; d < g.head_size; ++d)
        PutResult(out + i * g.ld_out + d, 0.0f, g.out_scale);
    }
    return;
  }
  MakeKeyPanels(g, plan, k_panels);
  MakeValuePanels(g, plan, v_panels);
  const RowTiles tiles(g.num_queries, kQueries);
  for (int64_t t = 0, row = 0; t < tiles.count(); row += tiles.rows(t), ++t) {
    const int64_t rows = tiles.rows(t);
    const T* q = static_cast<const T*>(g.q) + row * g.ld;
    int64_t ld = g.ld;
    if (plan.size > g.head_size) {
      for (int64_t i = 0; i < rows; ++i) {
        std::memcpy(queries + i * plan.size, q + i * g.ld, g.head_size * sizeof(T));
        std::fill_n(queries + i * plan.size + g.head_size, plan.size - g.head_size, T{});
      }
      q = queries;
      ld = plan.size;
    }
    AttentionProduct(q, ld, k_panels, plan.size, rows, scores, plan.padded_keys);
    float inverse[kQueries];
    for (int64_t i = 0; i < rows; ++i) {
      inverse[i] =
          Softmax(scores + i * plan.padded_keys, probabilities + i * plan.padded_keys, g.num_keys,
                  plan.padded_keys, g.scale, g.mask, g.mask_dtype, (row + i) * g.mask_ld);
    }
    AttentionProduct(probabilities, plan.padded_keys, v_panels, plan.keys, rows, context,
                     plan.padded_size);
    const int64_t whole = g.head_size / kLanes * kLanes;
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = context + i * plan.padded_size;
      Out* to = out + (row + i) * g.ld_out;
      for (int64_t d = 0; d < whole; d += kLanes) {
        StoreResult(to + d, Load(from + d) * inverse[i], g.out_scale);
      }
      for (int64_t d = whole; d < g.head_size; ++d) {
        PutResult(to + d, from[d] * inverse[i], g.out_scale);
      }
    }
  }
}

void Attention(const AttentionArgs& g) {
  if (g.out_scale != 0.0f) {
    AttentionTo(g, static_cast<Q*>(g.out));
  } else {
    AttentionTo(g, static_cast<T*>(g.out));
  }
}
