// Products on tile registers, in plain C++: the walk over tiles, panels, chunks and rests of rows
// is the same text that AMX runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {
namespace plain_tiles {
extern const Primitives kPrimitives, kInt8Primitives;
}
namespace plain_tiles_bf16 {
extern const Primitives kPrimitives, kInt8Primitives;
}
namespace {

struct Sizes {
  int64_t rows, k, n;
};

unsigned Seed() {
  const char* seed = std::getenv("FT_TEST_SEED");
  return seed != nullptr ? std::strtoul(seed, nullptr, 10) : std::random_device{}();
}

// All panels of `b`[k,n].
std::vector<char> Panels(const GemmPrimitives& gemm, const void* b, DataType dtype,
                         const Sizes& s) {
  const int64_t panels = (s.n + gemm.panel_width - 1) / gemm.panel_width;
  std::vector<char> memory(panels * gemm.PanelBytes(s.k));
  const PanelSource source = {b, s.n};
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t col = p * gemm.panel_width;
    gemm.make_panel(&source, s.n, dtype, s.k, col, std::min(gemm.panel_width, s.n - col),
                    memory.data() + p * gemm.PanelBytes(s.k));
  }
  return memory;
}

GemmArgs Args(const GemmPrimitives& gemm, const Sizes& s, const std::vector<char>& panels) {
  GemmArgs g;
  g.panels = panels.data();
  g.panel_bytes = gemm.PanelBytes(s.k);
  g.rows = s.rows;
  g.k = s.k;
  g.cols = s.n;
  return g;
}

TEST(TileTest, IntegersAreExact) {
  const unsigned seed = Seed();
  SCOPED_TRACE("FT_TEST_SEED=" + std::to_string(seed));
  std::mt19937 generator(seed);
  const GemmPrimitives& gemm = plain_tiles::kInt8Primitives.gemm;
  for (const Sizes& s : {Sizes{1, 1, 1},
                         {16, 64, 32},
                         {17, 65, 33},
                         {32, 128, 64},
                         {33, 70, 31},
                         {47, 192, 100},
                         {49, 5, 7},
                         {100, 256, 40}}) {
    // As LayerSteps lays rows out: some more than are used.
    const int64_t lda = AlignUp(s.k, 64) + 64;
    std::vector<uint8_t> a(s.rows * lda);
    for (uint8_t& x : a) x = generator();
    std::vector<int8_t> b(s.k * s.n);
    for (int8_t& x : b) x = static_cast<int>(generator() % 255) - 127;
    std::vector<int64_t> expected(s.rows * s.n);
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t k = 0; k < s.k; ++k) {
        for (int64_t j = 0; j < s.n; ++j) {
          expected[i * s.n + j] += (a[i * lda + k] - 128) * b[k * s.n + j];
        }
      }
    }
    const std::vector<char> panels = Panels(gemm, b.data(), DataType::kInt8, s);
    std::vector<int32_t> sums(s.rows * s.n, -1);
    // In one chunk, and in chunks of 64.
    for (const int64_t chunk : {s.k, int64_t{64}}) {
      for (int64_t k = 0; k < s.k; k += chunk) {
        GemmArgs g = Args(gemm, s, panels);
        g.a = a.data() + k;
        g.lda = lda;
        g.first_k = k;
        g.k = std::min(chunk, s.k - k);
        g.c = sums.data();
        g.ldc = s.n;
        gemm.gemm(g);
      }
      EXPECT_TRUE(std::equal(sums.begin(), sums.end(), expected.begin()))
          << s.rows << "x" << s.k << "x" << s.n << " in chunks of " << chunk;
    }
    // With scale and bias, as float32.
    std::vector<float> scale(s.n), bias(s.n), out(s.rows * s.n);
    for (int64_t j = 0; j < s.n; ++j) scale[j] = 0.001f * (1 + j), bias[j] = 0.5f * j;
    GemmArgs g = Args(gemm, s, panels);
    g.a = a.data();
    g.lda = lda;
    g.scale = scale.data();
    g.bias = bias.data();
    g.out = out.data();
    g.ld_out = s.n;
    gemm.gemm(g);
    for (int64_t i = 0; i < s.rows * s.n; ++i) {
      const double want = expected[i] * double{scale[i % s.n]} + bias[i % s.n];
      EXPECT_NEAR(out[i], want, 1e-5 * (1 + std::abs(want)));
    }
  }
}

// Normal numbers of bfloat16; `exact` gets the same as float32.
std::vector<Bfloat16> RandomBfloat16(const Primitives& primitives, int64_t count,
                                     std::mt19937* generator, std::vector<float>* exact) {
  std::normal_distribution<float> normal;
  std::vector<Bfloat16> rounded(count);
  exact->resize(count);
  for (float& x : *exact) x = normal(*generator);
  primitives.convert(exact->data(), DataType::kFloat32, rounded.data(), DataType::kBFloat16, count);
  primitives.convert(rounded.data(), DataType::kBFloat16, exact->data(), DataType::kFloat32, count);
  return rounded;
}

TEST(TileTest, Bfloat16IsRight) {
  const unsigned seed = Seed();
  SCOPED_TRACE("FT_TEST_SEED=" + std::to_string(seed));
  std::mt19937 generator(seed);
  const Primitives& primitives = plain_tiles_bf16::kPrimitives;
  const GemmPrimitives& gemm = primitives.gemm;
  ASSERT_EQ(gemm.weight, DataType::kBFloat16);
  const auto random = [&](int64_t count, std::vector<float>* exact) {
    return RandomBfloat16(primitives, count, &generator, exact);
  };
  for (const Sizes& s : {Sizes{1, 32, 1}, {16, 64, 32}, {33, 96, 31}, {70, 128, 100}}) {
    std::vector<float> x, y;
    const std::vector<Bfloat16> a = random(s.rows * s.k, &x), b = random(s.k * s.n, &y);
    const std::vector<char> panels = Panels(gemm, b.data(), DataType::kBFloat16, s);
    std::vector<float> sums(s.rows * s.n, NAN);
    for (int64_t k = 0; k < s.k; k += 32) {
      GemmArgs g = Args(gemm, s, panels);
      g.a = a.data() + k;
      g.lda = s.k;
      g.first_k = k;
      g.k = 32;
      g.c = sums.data();
      g.ldc = s.n;
      gemm.gemm(g);
    }
    std::vector<Bfloat16> out(s.rows * s.n);
    const std::vector<float> bias(s.n, 1.0f);
    GemmArgs g = Args(gemm, s, panels);
    g.a = a.data();
    g.lda = s.k;
    g.bias = bias.data();
    g.out = out.data();
    g.ld_out = s.n;
    gemm.gemm(g);
    std::vector<float> outs(out.size());
    primitives.convert(out.data(), DataType::kBFloat16, outs.data(), DataType::kFloat32,
                       out.size());
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = 0; j < s.n; ++j) {
        double want = 0;
        for (int64_t k = 0; k < s.k; ++k) want += double{x[i * s.k + k]} * y[k * s.n + j];
        EXPECT_NEAR(sums[i * s.n + j], want, 1e-4);
        EXPECT_NEAR(outs[i * s.n + j], want + 1, 0.01 * (1 + std::abs(want)));
      }
    }
  }
}

TEST(TileTest, AttentionIsRight) {
  const unsigned seed = Seed();
  SCOPED_TRACE("FT_TEST_SEED=" + std::to_string(seed));
  std::mt19937 generator(seed);
  const Primitives& primitives = plain_tiles_bf16::kPrimitives;
  const AttentionPrimitives& attention = primitives.attention;
  // Two heads side by side, whose second is computed: what lies around it must not count.
  for (const int64_t size : {2, 6, 16, 32, 40, 64, 100}) {
    for (const int64_t keys : {1, 5, 32, 33, 70}) {
      for (const int64_t queries : {1, 17, 40, 70}) {
        const int64_t rows = std::max(keys, queries), ld = 6 * size;
        std::vector<float> x;
        std::vector<Bfloat16> qkv = RandomBfloat16(primitives, rows * ld, &generator, &x);
        const uint16_t nan = 0x7fc0;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t d = 0; d < size; ++d) {
            for (int64_t part = 0; part < 3; ++part) qkv[i * ld + 2 * part * size + d] = nan;
            if (i >= queries) qkv[i * ld + size + d] = nan;
            if (i >= keys) qkv[i * ld + 3 * size + d] = qkv[i * ld + 5 * size + d] = nan;
          }
        }
        // Masks of 0 and 1; the first key is never masked.
        std::vector<float> mask(queries * keys);
        for (float& m : mask) m = static_cast<float>(generator() % 2);
        for (int64_t i = 0; i < queries; ++i) mask[i * keys] = 1.0f;
        for (const bool is_masked : {false, true}) {
          std::vector<Bfloat16> out(queries * size, nan);
          std::vector<char> memory(attention.scratch_bytes(keys, size) + 64);
          AttentionArgs g = {};
          g.q = qkv.data() + size;
          g.k = qkv.data() + 3 * size;
          g.v = qkv.data() + 5 * size;
          g.ld = ld;
          g.num_queries = queries;
          g.num_keys = keys;
          g.head_size = size;
          g.scale = 0.3f;
          g.mask = is_masked ? mask.data() : nullptr;
          g.mask_ld = keys;
          g.mask_dtype = DataType::kFloat32;
          g.out = out.data();
          g.ld_out = size;
          void* aligned = memory.data();
          size_t space = memory.size();
          g.scratch = std::align(64, memory.size() - 64, aligned, space);
          attention.attention(g);
          for (int64_t i = 0; i < queries; ++i) {
            std::vector<double> weights(keys);
            double sum = 0;
            for (int64_t j = 0; j < keys; ++j) {
              double score = 0;
              for (int64_t d = 0; d < size; ++d) {
                score += double{x[i * ld + size + d]} * x[j * ld + 3 * size + d];
              }
              weights[j] = is_masked && mask[i * keys + j] == 0.0f ? 0.0 : std::exp(0.3 * score);
              sum += weights[j];
            }
            for (int64_t d = 0; d < size; ++d) {
              double want = 0;
              for (int64_t j = 0; j < keys; ++j) {
                want += weights[j] / sum * x[j * ld + 5 * size + d];
              }
              const uint32_t bits = static_cast<uint32_t>(out[i * size + d]) << 16;
              float got;
              std::memcpy(&got, &bits, 4);
              ASSERT_NEAR(got, want, 0.01 * (1 + std::abs(want)))
                  << "size " << size << ", " << keys << " keys, query " << i << " of " << queries
                  << ", element " << d << ", mask " << is_masked;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ft::cpu
