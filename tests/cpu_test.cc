// The CPU backend against a float64 encoder, without TensorFlow.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/reference_layer.h"
#include "tf_ops/core/encoder.h"
#include "tf_ops/cpu/encoder.h"
#include "tf_ops/cpu/primitives/primitives.h"
#include "tf_ops/cpu/thread_pool.h"

namespace ft {
namespace {

using Vector = reference::Doubles;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Values of a tensor in `dtype`, and the same values (after rounding) in float64.
struct Data {
  std::vector<char> bytes;
  Vector values;
};

Data Round(const Vector& values, DataType dtype) {
  std::vector<float> floats(values.begin(), values.end());
  Data data;
  data.bytes.resize(floats.size() * SizeOf(dtype));
  cpu::Convert(floats.data(), DataType::kFloat32, data.bytes.data(), dtype, floats.size());
  cpu::Convert(data.bytes.data(), dtype, floats.data(), DataType::kFloat32, floats.size());
  data.values.assign(floats.begin(), floats.end());
  return data;
}

struct Case {
  int64_t heads, size, inner, layers;
  std::vector<int64_t> lengths;
  int64_t seq_len;
  DataType dtype = DataType::kFloat32;
  bool packed = false;
  int mask = 0;  // 0 none, 1 prefix (the lengths), 2 random, 3 everything masked
  Activation activation = Activation::kGeluTanh;
  int threads = 2;
};

// $FT_TEST_SEED repeats a run.
unsigned Seed() {
  const char* seed = std::getenv("FT_TEST_SEED");
  return seed != nullptr ? std::strtoul(seed, nullptr, 10) : std::random_device{}();
}

// What the backend and float64 gave for the real tokens.
struct Outcome {
  std::vector<float> got;
  Vector expected;
};

using Weights = std::vector<std::vector<Data>>;  // [layer][field]

// Runs `c` on the backend and in float64, after `change` had the weights.
Outcome Compute(const Case& c, unsigned seed,
                const std::function<void(Weights* weights)>& change = nullptr) {
  const int64_t hidden = c.heads * c.size, seq_len = c.seq_len;
  const int64_t batch_size = c.lengths.size();
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const auto random = [&](int64_t count, double scale, double shift) {
    Vector v(count);
    for (double& x : v) x = normal(generator) * scale + shift;
    return Round(v, c.dtype);
  };
  EncoderConfig config;
  config.dtype = c.dtype;
  config.num_heads = c.heads;
  config.head_size = c.size;
  config.inner_size = c.inner;
  config.num_layers = c.layers;
  config.activation = c.activation;
  std::unique_ptr<Encoder> encoder;
  EXPECT_TRUE(cpu::CreateCpuEncoder(config, &encoder).ok());

  Weights weights(c.layers);
  std::vector<LayerWeights> views(c.layers);
  for (int64_t l = 0; l < c.layers; ++l) {
    for (int f = 0; f < kWeightsPerLayer; ++f) {
      const std::string name = WeightFields()[f].op_input;
      const Shape shape = WeightShape(config, f);
      const bool gamma = name.find("gamma") != std::string::npos;
      weights[l].push_back(random(NumElements(shape),
                                  shape.size() == 2 ? 1.0 / std::sqrt(shape[0]) : 0.1,
                                  gamma ? 1.0 : 0.0));
      views[l].*WeightFields()[f].view = {nullptr, c.dtype, shape};
    }
  }
  if (change != nullptr) change(&weights);
  for (int64_t l = 0; l < c.layers; ++l) {
    for (int f = 0; f < kWeightsPerLayer; ++f) {
      (views[l].*WeightFields()[f].view).data = weights[l][f].bytes.data();
    }
  }

  // Tokens; what no query may attend to is NaN.
  std::vector<int32_t> offsets = {0}, lengths;
  for (int64_t length : c.lengths) {
    offsets.push_back(offsets.back() + length);
    lengths.push_back(length);
  }
  const int64_t tokens = c.packed ? offsets.back() : batch_size * seq_len;
  const auto row_of = [&](int64_t b) { return c.packed ? offsets[b] : b * seq_len; };
  Vector x = random(tokens * hidden, 1.0, 0.0).values;
  const bool by_length = c.mask == 0;
  if (!c.packed && by_length) {
    for (int64_t b = 0; b < batch_size; ++b) {
      for (int64_t i = c.lengths[b] * hidden; i < seq_len * hidden; ++i) {
        x[b * seq_len * hidden + i] = kNaN;
      }
    }
  }
  Data input = Round(x, c.dtype);
  Vector mask_values(c.mask ? batch_size * seq_len * seq_len : 0);
  for (int64_t i = 0; i < static_cast<int64_t>(mask_values.size()); ++i) {
    const int64_t b = i / (seq_len * seq_len), key = i % seq_len;
    if (c.mask == 1) mask_values[i] = key < c.lengths[b];
    // Every query sees a key: one that sees none is a case of its own, 3.
    if (c.mask == 2) mask_values[i] = key == 0 || generator() % 2;
  }
  const Data mask = Round(mask_values, c.dtype);

  Data output = Round(Vector(tokens * hidden, kNaN), c.dtype);
  EncoderBatch batch;
  batch.batch_size = batch_size;
  batch.max_seq_len = seq_len;
  batch.num_tokens = tokens;
  batch.packed = c.packed;
  if (c.packed) batch.seq_offsets = offsets.data();
  if (!c.packed && by_length) batch.key_lengths = lengths.data();
  if (c.mask) batch.attention_mask = mask.bytes.data();
  batch.input = input.bytes.data();
  batch.outputs = {output.bytes.data()};
  cpu::StdThreadPool pool(c.threads);
  ExecutionContext context;
  context.pool = &pool;
  const auto aligned = [](int64_t bytes) {
    return std::unique_ptr<void, decltype(&std::free)>(
        std::aligned_alloc(kAlignment, AlignUp(bytes + 1, kAlignment)), &std::free);
  };
  const auto packed = aligned(encoder->PreparedWeightBytes());
  int64_t workspace_bytes = 0;
  EXPECT_TRUE(encoder->WorkspaceBytes(batch, context, &workspace_bytes).ok());
  const auto workspace = aligned(workspace_bytes);
  std::memset(workspace.get(), 0xff, workspace_bytes);  // NaN in every type
  Status status = encoder->PrepareWeights(views, packed.get(), context);
  EXPECT_TRUE(status.ok()) << status.message();
  status = encoder->Run(batch, packed.get(), workspace.get(), context);
  EXPECT_TRUE(status.ok()) << status.message();

  reference::Sequences sequences = reference::MakeSequences(seq_len, lengths, c.packed);
  if (!c.packed && !by_length) sequences.keys.assign(batch_size, seq_len);
  x = input.values;
  for (const std::vector<Data>& layer : weights) {
    reference::Layer values;
    for (int f = 0; f < kWeightsPerLayer; ++f) values.values[f] = layer[f].values;
    x = reference::RunLayer(x, values, config, sequences, mask.values);
  }
  std::vector<float> got(tokens * hidden);
  cpu::Convert(output.bytes.data(), c.dtype, got.data(), DataType::kFloat32, got.size());
  Outcome outcome;
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t rows = c.mask > 1 ? (c.packed ? c.lengths[b] : seq_len) : c.lengths[b];
    for (int64_t i = row_of(b) * hidden; i < (row_of(b) + rows) * hidden; ++i) {
      outcome.got.push_back(got[i]);
      outcome.expected.push_back(x[i]);
    }
  }
  return outcome;
}

double MaxDifference(const Outcome& outcome) {
  double worst = 0;
  for (size_t i = 0; i < outcome.got.size(); ++i) {
    const double difference = std::abs(outcome.got[i] - outcome.expected[i]);
    if (!(difference <= worst)) worst = difference;  // NaN stays
  }
  return worst;
}

double Tolerance(const Case& c) {
  if (c.dtype == DataType::kBFloat16) return 0.15;
  if (c.dtype == DataType::kFloat16) return 6e-3;
  return c.mask == 3 ? 2e-3 : 3e-5;  // score - 10000 leaves float32 three decimals
}

class EncoderTest : public testing::TestWithParam<Case> {};

TEST_P(EncoderTest, MatchesFloat64) {
  const Case& c = GetParam();
  const unsigned seed = Seed();
  SCOPED_TRACE(testing::Message() << "FT_TEST_SEED=" << seed);
  const double worst = MaxDifference(Compute(c, seed));
  EXPECT_LE(worst, Tolerance(c));
  EXPECT_FALSE(std::isnan(worst));
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const DataType dtypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16};
  for (DataType dtype : dtypes) {
    for (bool packed : {false, true}) {
      for (int mask : {0, 1, 2, 3}) {
        cases.push_back({3, 40, 200, 2, {5, 0, 17, 1}, 17, dtype, packed, mask});
      }
      for (Activation activation : {Activation::kGeluErf, Activation::kRelu}) {
        cases.push_back({2, 64, 256, 1, {7, 3}, 7, dtype, packed, 0, activation});
      }
      cases.push_back({12, 32, 1536, 1, {97, 33, 61}, 97, dtype, packed, 0});
      cases.push_back({8, 96, 800, 1, {1}, 1, dtype, packed, 0});
      cases.push_back({4, 32, 512, 1, {384, 100}, 384, dtype, packed, 2});
    }
  }
  cases.push_back({12, 64, 3072, 1, {128, 64}, 128});
  cases.push_back({16, 64, 4096, 1, {40}, 40});
  cases.push_back({2, 64, 128, 1, {1024}, 1024});
  cases.push_back({1, 7, 13, 2, {5, 9}, 9, DataType::kBFloat16, true});  // odd: float32 inside
  cases.push_back({1, 7, 13, 2, {5, 9}, 9, DataType::kFloat32, true});
  cases.push_back({2, 16, 64, 3, {30}, 30, DataType::kFloat32, false, 0, Activation::kGeluTanh, 7});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Sizes, EncoderTest, testing::ValuesIn(Cases()));

// NaN, infinity of either sign, or a number.
int Class(double x) { return std::isnan(x) ? 3 : std::isinf(x) ? (x > 0 ? 2 : 1) : 0; }

// NaN and infinity in a weight come out where the definition has them: a damaged model must not
// give plausible answers.
TEST(EncoderTest, NonFiniteWeightsComeOut) {
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (const Activation activation :
         {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu}) {
      for (int field = 0; field < kWeightsPerLayer; ++field) {
        for (const double value : {kNaN, HUGE_VAL, -HUGE_VAL}) {
          const Case c = {2, 8, 20, 1, {5, 3}, 5, dtype, field % 2 == 0, 0, activation};
          const Outcome outcome = Compute(c, 1, [&](Weights* weights) {
            Vector values = (*weights)[0][field].values;
            values[values.size() / 3] = value;
            (*weights)[0][field] = Round(values, dtype);
          });
          int num_special = 0;
          for (size_t i = 0; i < outcome.got.size(); ++i) {
            ASSERT_EQ(Class(outcome.got[i]), Class(outcome.expected[i]))
                << Name(dtype) << ", " << WeightFields()[field].op_input << " = " << value
                << ", element " << i << ": " << outcome.got[i] << ", expected "
                << outcome.expected[i];
            num_special += Class(outcome.got[i]) != 0;
          }
          // relu makes -inf 0, and nothing of it is seen.
          const bool hidden = activation == Activation::kRelu && value < 0 && field == 11;
          EXPECT_EQ(num_special > 0, !hidden) << WeightFields()[field].op_input << " = " << value;
        }
      }
    }
  }
}

TEST(EncoderTest, AnswersBadBatches) {
  EncoderConfig config;
  config.num_heads = 2;
  config.head_size = 8;
  config.inner_size = 32;
  std::unique_ptr<Encoder> encoder;
  ASSERT_TRUE(cpu::CreateCpuEncoder(config, &encoder).ok());
  cpu::StdThreadPool pool(1);
  ExecutionContext context;
  context.pool = &pool;
  EncoderBatch batch;
  batch.batch_size = 2;
  batch.max_seq_len = 4;
  batch.num_tokens = 7;
  batch.outputs = {nullptr};
  const Status status = encoder->Run(batch, nullptr, nullptr, context);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("num_tokens is 7, expected 8"), std::string::npos);
  config.head_size = 0;
  EXPECT_EQ(cpu::CreateCpuEncoder(config, &encoder).code(), StatusCode::kInvalidArgument);
}

// $FT_CPU_ISA, which this target may have been given, is what runs, where the processor has it.
TEST(IsaTest, RunsWhatItIsNamedFor) {
  const char* isa = std::getenv("FT_CPU_ISA");
  if (isa == nullptr) GTEST_SKIP() << "FT_CPU_ISA is not set";
  const bool for_bfloat16 = std::string(isa) == "avx512bf16";
  const cpu::Primitives& primitives =
      cpu::GetPrimitives(for_bfloat16 ? DataType::kBFloat16 : DataType::kFloat32, true);
  if (std::string(primitives.isa) != isa) {
    GTEST_SKIP() << "this processor has no " << isa << ": " << primitives.isa << " ran";
  }
}

}  // namespace
}  // namespace ft
