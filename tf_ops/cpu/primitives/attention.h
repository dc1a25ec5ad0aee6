// Attention of one head.
// Textual, compiled once for each instruction set (isa.h): no include guard.
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
template <typename Out>
void AttentionTo(const AttentionArgs& g, Out* out) {
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
  if (g.num_keys == 0) {
    for (int64_t i = 0; i < g.num_queries; ++i) {
      for (int64_t d = 0; d < g.head_size; ++d)
        PutResult(out + i * g.ld_out + d, 0.0f, g.out_scale);
    }
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
