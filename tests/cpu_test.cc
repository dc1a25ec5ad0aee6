// The CPU backend against a float64 encoder, without TensorFlow.
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/reference_layer.h"
#include "tf_ops/core/encoder.h"
#include "tf_ops/core/scales.h"
#include "tf_ops/cpu/cpu_quota.h"
#include "tf_ops/cpu/cpu_seat.h"
#include "tf_ops/cpu/encoder.h"
#include "tf_ops/cpu/phases.h"
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
  int int8_mode = 0;
  bool has_last_layer = true;
};

// $FT_TEST_SEED repeats a run.
unsigned Seed() {
  const char* seed = std::getenv("FT_TEST_SEED");
  return seed != nullptr ? std::strtoul(seed, nullptr, 10) : std::random_device{}();
}

// What the backend and float64 gave for the real tokens; INT8: of which rows float32 may round some
// number to another integer than float64.
struct Outcome {
  std::vector<float> got;
  Vector expected;
  std::vector<bool> is_doubtful;
};

// Kernels of random integers, and lists of different ranges for everything.
Data RandomIntegers(int64_t count, std::mt19937* generator) {
  std::uniform_int_distribution<int> integer(-127, 127);
  Data data;
  for (int64_t i = 0; i < count; ++i) {
    const int value = integer(*generator);
    data.bytes.push_back(static_cast<char>(value));
    data.values.push_back(value);
  }
  return data;
}

std::vector<float> RandomScaleList(const EncoderConfig& config, float input, float output,
                                   std::mt19937* generator) {
  std::uniform_real_distribution<float> range(0.7f, 1.3f);
  std::vector<float> list(ScaleListSize(config), std::nanf(""));  // most of it is not read
  for (int slot : {9, 10, 11, 13, 14}) list[4 * slot] = 3.0f * range(*generator);
  list[0] = input;
  list[60] = output;
  const int64_t hidden = config.hidden_size(), columns = 5 * hidden + config.inner_size;
  for (int64_t i = 0; i < columns; ++i) {
    const bool of_output = i >= columns - hidden;
    const double inputs = of_output ? config.inner_size : hidden;
    list[80 + i] = static_cast<float>(1.7 / std::sqrt(inputs)) * range(*generator);
  }
  return list;
}

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
  config.int8_mode = c.int8_mode;
  config.has_last_layer = c.has_last_layer;
  std::unique_ptr<Encoder> encoder;
  EXPECT_TRUE(cpu::CreateCpuEncoder(config, &encoder).ok());

  Weights weights(c.layers);
  std::vector<LayerWeights> views(c.layers);
  for (int64_t l = 0; l < c.layers; ++l) {
    for (int f = 0; f < kWeightsPerLayer; ++f) {
      const std::string name = WeightFields()[f].op_input;
      const Shape shape = WeightShape(config, f);
      const bool gamma = name.find("gamma") != std::string::npos;
      if (WeightFields()[f].is_quantized && c.int8_mode != 0) {
        weights[l].push_back(RandomIntegers(NumElements(shape), &generator));
        views[l].*WeightFields()[f].view = {nullptr, DataType::kInt8, shape};
        continue;
      }
      weights[l].push_back(random(NumElements(shape),
                                  shape.size() == 2 ? 1.0 / std::sqrt(shape[0]) : 0.1,
                                  gamma ? 1.0 : 0.0));
      views[l].*WeightFields()[f].view = {nullptr, c.dtype, shape};
    }
  }
  std::vector<std::vector<float>> lists;
  for (int64_t l = 0; l < c.layers && c.int8_mode != 0; ++l) {
    lists.push_back(RandomScaleList(config, 3.0f + 0.1f * l, 3.0f + 0.1f * (l + 1), &generator));
    views[l].amax_list = {lists[l].data(), DataType::kFloat32, {ScaleListSize(config)}};
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

  if (c.packed) {
    // Of padded tensors it computes the same, whatever their padding holds.
    const int64_t row_bytes = hidden * SizeOf(c.dtype),
                  padded_bytes = batch_size * seq_len * row_bytes;
    std::vector<char> padded(padded_bytes, static_cast<char>(0xff));  // NaN in every type
    std::vector<std::vector<char>> outputs(c.layers, padded);
    EncoderBatch of_padded = batch;
    of_padded.has_padded_tensors = true;
    of_padded.outputs.clear();
    for (std::vector<char>& each : outputs) of_padded.outputs.push_back(each.data());
    std::vector<char> expected(padded_bytes, 0);
    for (int64_t b = 0; b < batch_size; ++b) {
      const int64_t from = offsets[b] * row_bytes, to = b * seq_len * row_bytes;
      std::copy_n(input.bytes.data() + from, c.lengths[b] * row_bytes, padded.data() + to);
      std::copy_n(output.bytes.data() + from, c.lengths[b] * row_bytes, expected.data() + to);
    }
    of_padded.input = padded.data();
    EXPECT_TRUE(encoder->RemovesPadding());
    EXPECT_TRUE(encoder->Run(of_padded, packed.get(), workspace.get(), context).ok());
    EXPECT_TRUE(outputs.back() == expected);
    for (int64_t b = 0; b < batch_size; ++b) {
      const auto end = outputs[0].begin() + (b + 1) * seq_len * row_bytes;
      const int64_t padding = (seq_len - c.lengths[b]) * row_bytes;
      EXPECT_EQ(std::count(end - padding, end, 0), padding);
    }
  }

  reference::Sequences sequences = reference::MakeSequences(seq_len, lengths, c.packed);
  if (!c.packed && !by_length) sequences.keys.assign(batch_size, seq_len);
  x = input.values;
  std::vector<LayerRanges> ranges;
  EXPECT_TRUE(ReadAllRanges(config, views, &ranges).ok());
  reference::Quantizer quantizer(sequences);
  for (int64_t l = 0; l < c.layers; ++l) {
    reference::Layer values;
    for (int f = 0; f < kWeightsPerLayer; ++f) values.values[f] = weights[l][f].values;
    const bool is_last = c.has_last_layer && l + 1 == c.layers;
    x = c.int8_mode == 0 ? reference::RunLayer(x, values, config, sequences, mask.values)
                         : reference::RunInt8Layer(x, {values, ranges[l]}, config, is_last,
                                                   sequences, mask.values, &quantizer);
  }
  std::vector<float> got(tokens * hidden);
  cpu::Convert(output.bytes.data(), c.dtype, got.data(), DataType::kFloat32, got.size());
  Outcome outcome;
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t rows = c.mask > 1 ? (c.packed ? c.lengths[b] : seq_len) : c.lengths[b];
    for (int64_t i = row_of(b) * hidden; i < (row_of(b) + rows) * hidden; ++i) {
      outcome.got.push_back(got[i]);
      outcome.expected.push_back(x[i]);
      outcome.is_doubtful.push_back(c.int8_mode != 0 && quantizer.IsDoubtful(i / hidden));
    }
  }
  return outcome;
}

// `only_certain`: without the doubtful rows.
double MaxDifference(const Outcome& outcome, bool only_certain = false) {
  double worst = 0;
  for (size_t i = 0; i < outcome.got.size(); ++i) {
    if (only_certain && outcome.is_doubtful[i]) continue;
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

class Int8Test : public testing::TestWithParam<Case> {};

int64_t NumCertain(const Outcome& outcome) {
  return std::count(outcome.is_doubtful.begin(), outcome.is_doubtful.end(), false);
}

TEST_P(Int8Test, MatchesFloat64) {
  unsigned seed = Seed();
  SCOPED_TRACE("FT_TEST_SEED=" + std::to_string(seed));
  const Case& c = GetParam();
  Outcome outcome = Compute(c, seed);
  // Of several layers, half precision or score - 10000 float32 is too far from float64 to say which
  // integers are certain.
  const bool tells_certain = c.layers == 1 && c.dtype == DataType::kFloat32 && c.mask != 3;
  // One of many numbers is nearly always doubtful; where all rows of a small case are, by chance,
  // it is drawn again.
  const bool needs_certain = tells_certain && c.heads * c.size * c.inner < 2000;
  for (int i = 0; i < 8 && needs_certain && NumCertain(outcome) == 0; ++i) {
    outcome = Compute(c, ++seed);
  }
  // Another integer here and there moves a result by some steps of 3 / 127.
  EXPECT_LT(MaxDifference(outcome), c.layers > 1 ? 0.6 : 0.3);
  double total = 0;
  for (size_t i = 0; i < outcome.got.size(); ++i) {
    total += std::abs(outcome.got[i] - outcome.expected[i]);
  }
  // The smallest cases have 9 rows, of which one may have another integer.
  const bool precise = c.layers == 1 && c.dtype != DataType::kBFloat16;
  EXPECT_LT(total / outcome.got.size(), precise ? 0.015 : 0.05);
  if (!tells_certain) return;
  EXPECT_GT(NumCertain(outcome), needs_certain ? 0 : -1);
  EXPECT_LT(MaxDifference(outcome, true), 3e-5);
}

std::vector<Case> Int8Cases() {
  std::vector<Case> cases;
  for (int mode : {1, 2, 3}) {
    Case c = {2, 16, 48, 1, {5, 3, 1}, 5};
    c.int8_mode = mode;
    cases.push_back(c);
    c.packed = true;
    cases.push_back(c);
    c.packed = false;
    for (int mask : {1, 2, 3}) {
      c.mask = mask;
      cases.push_back(c);
    }
    c.mask = 0;
    for (Activation activation : {Activation::kGeluErf, Activation::kRelu}) {
      c.activation = activation;
      cases.push_back(c);
    }
    c.activation = Activation::kGeluTanh;
    c.has_last_layer = false;
    cases.push_back(c);
    c.has_last_layer = true;
    // Odd sizes: groups that are not full, panels that are not.
    for (const auto& [heads, size, inner] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {3, 7, 13}, {1, 3, 5}, {2, 33, 70}}) {
      Case odd = {heads, size, inner, 1, {7, 0, 2}, 7};
      odd.int8_mode = mode;
      cases.push_back(odd);
    }
    // Many rows: a task takes a block of them; the inner layer in chunks.
    Case many = {2, 16, 3100, 1, {120, 100, 120}, 120};
    many.int8_mode = mode;
    many.threads = 3;
    cases.push_back(many);
    many.threads = 1;
    many.packed = true;
    cases.push_back(many);
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      Case deep = {2, 16, 64, 3, {9, 4}, 9};
      deep.dtype = dtype;
      deep.int8_mode = mode;
      cases.push_back(deep);
      deep.layers = 1;
      cases.push_back(deep);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Int8Test, testing::ValuesIn(Int8Cases()));

TEST(Int8Test, RefusesRangesThatNoIntegersHave) {
  EncoderConfig config;
  config.num_heads = 1;
  config.head_size = 4;
  config.inner_size = 6;
  config.num_layers = 2;
  config.int8_mode = 2;
  std::mt19937 generator(1);
  std::vector<std::vector<float>> lists(2);
  std::vector<LayerWeights> layers(2);
  std::vector<LayerRanges> ranges;
  const auto message = [&](int layer, int64_t at, float value) {
    for (int l = 0; l < 2; ++l) {
      lists[l] = RandomScaleList(config, 1.0f + l, 2.0f + l, &generator);
      layers[l].amax_list = {lists[l].data(), DataType::kFloat32, {ScaleListSize(config)}};
    }
    EXPECT_TRUE(ReadAllRanges(config, layers, &ranges).ok());
    lists[layer][at] = value;
    const Status status = ReadAllRanges(config, layers, &ranges);
    return status.ok() ? "" : status.message();
  };
  const auto contains = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_EQ(message(0, 4, -1.0f), "");  // not read
  EXPECT_TRUE(contains(message(0, 36, 0.0f), "amax_list[0] has 1 ranges")) << message(0, 36, 0.0f);
  EXPECT_TRUE(contains(message(1, 40, NAN), "amax_list[1] has 1 ranges"));
  EXPECT_TRUE(contains(message(1, 80 + 5 * 4 + 5, INFINITY), "float 105 is inf"));
  EXPECT_TRUE(contains(message(0, 60, 5.0f), "expected that of amax_list[1]'s input, 2"));
  config.int8_mode = 1;  // reads no ranges of products and outputs
  EXPECT_EQ(message(0, 60, 5.0f), "");
  EXPECT_EQ(message(0, 40, NAN), "");
}

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

// Any number of threads: by rows and as a grid, whose sums run over the inner layer alike.
TEST(EncoderTest, ResultsDoNotDependOnTheNumberOfThreads) {
  const unsigned seed = Seed();
  SCOPED_TRACE("FT_TEST_SEED=" + std::to_string(seed));
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (const int int8_mode : {0, 1, 2}) {
      Case c = {2, 32, 800, 2, {96, 1, 70, 96}, 96, dtype, true};
      c.int8_mode = int8_mode;
      c.threads = 1;
      const std::vector<float> one = Compute(c, seed).got;
      for (const int threads : {2, 3, 5, 16, 40}) {
        c.threads = threads;
        const std::vector<float> many = Compute(c, seed).got;
        ASSERT_EQ(many.size(), one.size());
        EXPECT_EQ(std::memcmp(many.data(), one.data(), one.size() * sizeof(float)), 0)
            << threads << " threads, dtype " << static_cast<int>(dtype) << ", INT8 mode "
            << int8_mode;
      }
    }
  }
}

// A phase begins when the one before has ended, also where threads are many and some have slept.
TEST(PhasesTest, RunsOneAfterTheOther) {
  for (const int threads : {1, 2, 7}) {
    constexpr int64_t kPhases = 30, kTasks = 5;
    std::vector<std::atomic<int>> done(kPhases);
    std::atomic<int> early{0}, bad_workers{0};
    cpu::Phases phases;
    for (int64_t p = 0; p < kPhases; ++p) {
      phases.Add(kTasks, [&, p](int64_t task, int worker) {
        if (worker < 0 || worker >= threads) ++bad_workers;
        if (p > 0 && done[p - 1] != kTasks) ++early;
        // Long enough for the others to fall asleep.
        if (p % 3 == 0 && task == kTasks - 1) {
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        ++done[p];
      });
    }
    phases.Add(0, [&](int64_t, int) { ++early; });
    cpu::StdThreadPool pool(threads);
    phases.Run(&pool);
    EXPECT_EQ(early, 0);
    EXPECT_EQ(bad_workers, 0);
    for (const std::atomic<int>& count : done) EXPECT_EQ(count, kTasks);
  }
}

// Rows cut in many ways, one phase after the other: a task finds that the phase before has finished
// all tasks of its rows.
// The CPUs that the calling thread is allowed, that it is allowed these, and one alone.
cpu_set_t AllowedCpus() {
  cpu_set_t allowed;
  EXPECT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  return allowed;
}
void AllowCpus(const cpu_set_t& allowed) {
  EXPECT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
}
cpu_set_t OnlyCpu(int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  return one;
}

// Calls `work` in a thread that begins on `cpu` and is allowed `allowed`.
void OnCpu(int cpu, const cpu_set_t& allowed, const std::function<void()>& work) {
  std::thread thread([&] {
    AllowCpus(OnlyCpu(cpu));
    AllowCpus(allowed);
    work();
  });
  thread.join();
}

TEST(CpuSeatTest, MovesToAFreeCpuThatIsAllowed) {
  const cpu_set_t all = AllowedCpus();
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "one CPU";
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  const cpu_set_t only_first = OnlyCpu(first);
  OnCpu(first, only_first, [&] {
    const cpu::CpuSeat seat;
    EXPECT_EQ(seat.cpu(), first);
    OnCpu(first, all, [&] {
      const cpu::CpuSeat second;
      EXPECT_NE(second.cpu(), first);
      EXPECT_TRUE(CPU_ISSET(second.cpu(), &all));
      const cpu_set_t after = AllowedCpus();
      EXPECT_TRUE(CPU_EQUAL(&after, &all));
    });
    OnCpu(first, only_first, [&] {
      const cpu::CpuSeat second;  // may not move
      EXPECT_EQ(second.cpu(), first);
      const cpu_set_t after = AllowedCpus();
      EXPECT_TRUE(CPU_EQUAL(&after, &only_first));
    });
  });
}

TEST(CpuSeatTest, StaysWhereAllCpusAreTaken) {
  const cpu_set_t all = AllowedCpus();
  std::vector<std::unique_ptr<cpu::CpuSeat>> seats;
  for (int c = 0; c < CPU_SETSIZE; ++c) {
    if (!CPU_ISSET(c, &all)) continue;
    AllowCpus(OnlyCpu(c));
    seats.push_back(std::make_unique<cpu::CpuSeat>());
    EXPECT_EQ(seats.back()->cpu(), c);
  }
  AllowCpus(all);
  const cpu::CpuSeat one_more;
  EXPECT_TRUE(CPU_ISSET(one_more.cpu(), &all));
  const cpu_set_t after = AllowedCpus();
  EXPECT_TRUE(CPU_EQUAL(&after, &all));
}

TEST(PhasesTest, WaitsForItsRows) {
  constexpr int64_t kRows = 60;
  const std::vector<cpu::RowParts> cuts = {
      {{0, 10, 20, 30, 40, 50, 60}}, {{0, 60}},
      {{0, 0, 7, 7, 33, 60, 60}},    {{0, 1, 59, 60}},
      {{0, 16, 32, 48, 60}},         {{0, 0, 7, 7, 33, 60, 60}}};
  for (const int threads : {1, 2, 7}) {
    constexpr int64_t kPhases = 60;
    std::vector<std::vector<std::atomic<int64_t>>> done;  // tasks of each phase's rows
    for (int64_t p = 0; p < kPhases; ++p) done.emplace_back(kRows);
    std::atomic<int> early{0}, bad_workers{0}, ahead{0};
    const auto tasks_per_part = [](int64_t p) { return p % 4 + 1; };
    cpu::Phases phases;
    for (int64_t p = 0; p < kPhases; ++p) {
      const cpu::RowParts& parts = cuts[p % cuts.size()];
      phases.Add(std::make_shared<cpu::RowParts>(parts), tasks_per_part(p),
                 [&, p](int64_t part, int64_t index, int worker) {
                   if (worker < 0 || worker >= threads) ++bad_workers;
                   for (int64_t row = parts.edges[part]; row < parts.edges[part + 1]; ++row) {
                     if (p > 0 && done[p - 1][row] != tasks_per_part(p - 1)) ++early;
                   }
                   if (p > 0 && done[p - 1][kRows - 1] != tasks_per_part(p - 1)) ++ahead;
                   // Long enough for the others to fall asleep.
                   if (p % 8 == 0 && part + 1 == parts.count() && index == 0) {
                     std::this_thread::sleep_for(std::chrono::milliseconds(2));
                   }
                   for (int64_t row = parts.edges[part]; row < parts.edges[part + 1]; ++row)
                     ++done[p][row];
                 });
    }
    std::atomic<int64_t> whole{0};
    phases.Add(3, [&](int64_t, int) {
      for (const std::atomic<int64_t>& tasks : done[kPhases - 1]) {
        if (tasks != tasks_per_part(kPhases - 1)) ++early;
      }
      ++whole;
    });
    phases.Add(std::make_shared<cpu::RowParts>(cuts[0]), 1, [&](int64_t, int64_t, int) {
      if (whole != 3) ++early;
    });
    cpu::StdThreadPool pool(threads);
    phases.Run(&pool);
    EXPECT_EQ(early, 0);
    EXPECT_EQ(bad_workers, 0);
    // One thread goes through the phases one after the other; several go ahead of the last rows.
    EXPECT_EQ(ahead > 0, threads > 1);
    for (int64_t p = 0; p < kPhases; ++p) {
      for (const std::atomic<int64_t>& tasks : done[p]) EXPECT_EQ(tasks, tasks_per_part(p));
    }
  }
}

// Workers that come in time have the same share of every phase.
TEST(PhasesTest, WorkersStayAtTheirRows) {
  for (const int threads : {1, 2, 5}) {
    constexpr int64_t kPhases = 20;
    std::vector<std::atomic<int>> begun(kPhases);
    std::atomic<int> others{0};
    cpu::Phases phases;
    for (int64_t p = 0; p < kPhases; ++p) {
      phases.Add(threads, [&, p](int64_t task, int worker) {
        if (task != worker) ++others;
        // Nobody is free for a second task before everybody has begun the first.
        ++begun[p];
        while (begun[p] < threads) std::this_thread::yield();
      });
    }
    cpu::StdThreadPool pool(threads);
    phases.Run(&pool);
    EXPECT_EQ(others, 0) << threads << " threads";
  }
}

// A folder that stands for /.
class CpuQuotaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/cpu_quota_XXXXXX";
    ASSERT_NE(mkdtemp(root_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root_;
};

TEST_F(CpuQuotaTest, IsNoneWhereNothingIsSaid) {
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
  Write("proc/self/cgroup", "0::/a/b\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
  Write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
  Write("sys/fs/cgroup/a/b/cpu.max", "nonsense\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
  Write("proc/self/cgroup", "nonsense\n\n1:cpu\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
}

TEST_F(CpuQuotaTest, IsTheLeastOfAllGroupsAbove) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 4);
  Write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");  // 1.5
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 2);
  Write("sys/fs/cgroup/cpu.max", "50000 100000\n");  // as a container sees its own group
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 1);
}

TEST_F(CpuQuotaTest, KnowsTheFirstVersion) {
  Write("proc/self/cgroup", "3:cpuset:/a\n2:cpu,cpuacct:/a\n0::/\n");
  Write("sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us", "100000\n");  // not where it would be read
  Write("sys/fs/cgroup/cpuset/a/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 0);
  Write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n");
  EXPECT_EQ(cpu::ReadCpuQuota(root_), 3);
}

// $FT_CPU_ISA, which this target may have been given, is what runs, where the processor has it.
TEST(IsaTest, RunsWhatItIsNamedFor) {
  const char* isa = std::getenv("FT_CPU_ISA");
  if (isa == nullptr) GTEST_SKIP() << "FT_CPU_ISA is not set";
  for (const int int8_mode : {0, 1}) {
    EncoderConfig config;
    config.head_size = 32;
    config.inner_size = 32;
    config.int8_mode = int8_mode;
    const bool has_bfloat16 = std::string(isa) == "avx512bf16" || std::string(isa) == "amx";
    if (has_bfloat16) config.dtype = DataType::kBFloat16;
    const cpu::Primitives& primitives = cpu::GetPrimitives(config);
    EXPECT_EQ(primitives.has_integers(), int8_mode != 0);
    if (std::string(primitives.isa) != isa) {
      GTEST_SKIP() << "this processor has no " << isa << ": " << primitives.isa << " ran";
    }
  }
}

}  // namespace
}  // namespace ft
