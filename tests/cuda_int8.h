// INT8 and FP8 on CUDA: each kernel against exact sums, whole layers against float64 (docs/int8.md,
// docs/fp8.md).
#pragma once

#include <stdlib.h>

#include <fstream>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "tests/cuda_support.h"
#include "tf_ops/core/encoder.h"
#include "tf_ops/core/scales.h"
#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/backend.h"
#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/gemm/int8/int8_gemm.h"
#include "tf_ops/cuda/gemm/int8/int8_kinds.h"
#include "tf_ops/cuda/norm/int8_layer_norm.h"
#include "tf_ops/cuda/norm/layer_norm.h"
#include "tf_ops/cuda/rows/elementwise.h"

namespace ft::cuda::testing {

inline LaunchContext CurrentContext() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  return context;
}

inline Doubles RandomIntegers(int64_t count, int lowest = -127) {
  std::uniform_int_distribution<int> integer(lowest, 127);
  Doubles values(count);
  for (double& v : values) v = integer(generator);
  return values;
}

inline std::vector<float> RandomFloats(int64_t count, double scale, double low, double high) {
  std::uniform_real_distribution<double> uniform(low, high);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(scale * uniform(generator));
  return values;
}

// What integers differ in, where the kernel had x and float64 has `steps`: 0 if the nearest integer
// is right, or one of two where `steps` is within `doubt` of the middle between them.
inline double IntegerError(double got, double steps, double doubt) {
  if (std::isnan(got)) return INFINITY;
  if (std::isnan(steps)) return std::abs(got + 128);
  const double clamped = std::max(-128.0, std::min(127.0, steps));
  const double low = std::nearbyint(std::max(-128.0, clamped - doubt));
  const double high = std::nearbyint(std::min(127.0, clamped + doubt));
  return got < low ? low - got : got > high ? got - high : 0;
}

// The same of float8.
inline double Float8Error(double got, double number, double doubt) {
  if (std::isnan(got) || std::isnan(number))
    return std::isnan(got) == std::isnan(number) ? 0 : INFINITY;
  const double low = reference::RoundToFloat8(number - doubt);
  const double high = reference::RoundToFloat8(number + doubt);
  return got < low ? low - got : got > high ? got - high : 0;
}

// The poison behind the last element is as it was.
inline bool IsUntouched(const Device& memory, int64_t used_bytes, int64_t guard_bytes) {
  const Doubles bytes = memory.Read(used_bytes + guard_bytes, DataType::kInt8);
  for (int64_t i = used_bytes; i < used_bytes + guard_bytes; ++i) {
    if (bytes[i] != -1) return false;
  }
  return true;
}

// What kGeluTanh and kGeluErf may be off, in parts of its argument (docs/int8.md).
constexpr double kGeluError = 1.0 / 2048;

// ---- Products -----------------------------------------------------------------------------------

struct Int8GemmCase {
  int64_t rows, n, k;
  DataType dtype;
  bool has_bias;
  Int8Activation activation = Int8Activation::kNone;
  bool extreme = false;  // the largest sums that there are
  DataType input = DataType::kInt8;
};

// What tensor cores' sums of float8 products may be off, in parts of the products' magnitudes.
constexpr double kFloat8SumParts = 2048;

constexpr Int8Activation kInt8Activations[] = {
    Int8Activation::kNone, Int8Activation::kGeluTanh,      Int8Activation::kGeluErf,
    Int8Activation::kRelu, Int8Activation::kGeluTanhExact, Int8Activation::kGeluErfExact};

inline double ActivateExactly(double y, Int8Activation activation) {
  switch (activation) {
    case Int8Activation::kNone:
      return y;
    case Int8Activation::kGeluErf:
    case Int8Activation::kGeluErfExact:
      return reference::Activate(y, Activation::kGeluErf);
    case Int8Activation::kRelu:
      return reference::Activate(y, Activation::kRelu);
    default:
      return reference::Activate(y, Activation::kGeluTanh);
  }
}

// Largest error of some rows: in units of the last place of `dtype`, or of integers.
inline double GemmError(const Int8GemmCase& c, const Doubles& x, const Doubles& w,
                        const std::vector<float>& scale, const std::vector<float>& bias,
                        float out_scale, const Doubles& got) {
  const double places = c.dtype == DataType::kFloat32   ? 1e-6
                        : c.dtype == DataType::kFloat16 ? 0.6 / 1024
                                                        : 0.6 / 128;
  double worst = 0;
  std::vector<int64_t> some_rows = {c.rows - 1};
  for (int64_t row = 0; row < c.rows; row += std::max<int64_t>(1, c.rows / 24)) {
    some_rows.push_back(row);
  }
  for (const int64_t row : some_rows) {
    for (int64_t column = 0; column < c.n; ++column) {
      double sum = 0, magnitude = 0;  // exact: integers below 2^53
      for (int64_t k = 0; k < c.k; ++k) {
        const double product = x[row * c.k + k] * w[column * c.k + k];
        sum += product;
        magnitude += std::abs(product);
      }
      double y = sum * scale[column] + (c.has_bias ? bias[column] : 0.0);
      const double value = got[row * c.n + column];
      // Tensor cores keep some 13 bits of the largest of what they add up.
      const double coarse =
          c.input == DataType::kFloat8 ? magnitude * scale[column] / kFloat8SumParts : 0;
      double error;
      if (c.dtype != c.input) {
        error = std::abs(value - y) / ((std::abs(y) + 1e-3) * places + coarse);
      } else {
        double doubt = 2e-4 + coarse * out_scale;
        if (c.activation == Int8Activation::kGeluTanh || c.activation == Int8Activation::kGeluErf) {
          doubt += kGeluError * std::abs(y) * out_scale;
        }
        y = ActivateExactly(y, c.activation);
        error = c.input == DataType::kInt8 ? IntegerError(value, y * out_scale, doubt)
                                           : Float8Error(value, y * out_scale, doubt);
      }
      if (!(error <= worst)) worst = error;  // NaN stays
    }
  }
  return worst;
}

inline void TestInt8Gemm(const Int8GemmCase& c, const LaunchContext& context) {
  constexpr int64_t kGuard = 4096;
  const bool is_float8 = c.input == DataType::kFloat8;
  Doubles x = is_float8   ? Random(c.rows * c.k, 120.0)
              : c.extreme ? Doubles(c.rows * c.k, -128.0)
                          : RandomIntegers(c.rows * c.k, -128);
  Doubles w = c.extreme ? Doubles(c.n * c.k, -127.0) : RandomIntegers(c.n * c.k);
  if (c.extreme) {
    for (int64_t i = 0; i < c.k; ++i) w[i] = 127;  // of the first column
  }
  const double unit = c.extreme ? 1.0 / (128.0 * 127 * c.k) : 1 / (5400 * std::sqrt(1.0 * c.k));
  const std::vector<float> scale = RandomFloats(c.n, unit, 0.7, 1.3);
  const std::vector<float> bias = RandomFloats(c.n, 1.0, -1.0, 1.0);
  const std::vector<float> out_scale = {127.0f / 1.7f};  // the largest are out of the range
  const Device x_memory(&x, c.input), w_memory(&w, c.input), scale_memory(scale), bias_memory(bias),
      out_scale_memory(out_scale);
  Int8GemmArgs args;
  args.rows = c.rows;
  args.n = c.n;
  args.k = c.k;
  args.input_dtype = c.input;
  args.x = x_memory.data();
  args.w = w_memory.data();
  args.scale = static_cast<const float*>(scale_memory.data());
  args.bias = c.has_bias ? static_cast<const float*>(bias_memory.data()) : nullptr;
  args.output_dtype = c.dtype;
  args.activation = c.activation;
  if (c.dtype == c.input) {
    args.out_scale = static_cast<const float*>(out_scale_memory.data());
  }
  for (int kind = 0; kind < kNumInt8GemmKinds; ++kind) {
    const auto int8_kind = static_cast<Int8GemmKind>(kind);
    if (!Int8GemmSupported(args, int8_kind, context)) continue;
    const std::string name =
        StrCat(Name(c.input), " ", Name(int8_kind), " ", c.rows, "x", c.n, "x", c.k, " to ",
               Name(c.dtype), c.has_bias ? " bias" : "", c.extreme ? " extreme" : "",
               " activation ", static_cast<int>(c.activation));
    const int64_t bytes = c.rows * c.n * SizeOf(c.dtype);
    Device output(bytes + kGuard);
    args.output = output.data();
    MustBeOk(LaunchInt8Gemm(args, int8_kind, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    const double error =
        GemmError(c, x, w, scale, bias, out_scale[0], output.Read(c.rows * c.n, c.dtype));
    const double bound = c.dtype == c.input ? 0 : 1;
    const bool untouched = IsUntouched(output, bytes, kGuard);
    Check(error <= bound && untouched, StrCat(name, " error ", error, " <= ", bound,
                                              untouched ? "" : " WRITES BEHIND THE LAST ROW"));
  }
}

// Biases that are no numbers reach the integers as docs/int8.md has it.
inline void TestInt8GemmNonFinite(const LaunchContext& context) {
  const int64_t rows = 40, n = 64, k = 64;
  Doubles x(rows * k, 1.0), w(n * k, 1.0);
  std::vector<float> bias(n, 0.5f);
  bias[3] = NAN;
  bias[20] = INFINITY;
  bias[41] = -INFINITY;
  bias[50] = -1e20f;
  const Device x_memory(&x, DataType::kInt8), w_memory(&w, DataType::kInt8),
      scale_memory(std::vector<float>(n, 0.01f)), bias_memory(bias);
  for (int kind = 0; kind < kNumInt8GemmKinds; ++kind) {
    for (const Int8Activation activation : kInt8Activations) {
      Int8GemmArgs args;
      args.rows = rows;
      args.n = n;
      args.k = k;
      args.x = x_memory.data();
      args.w = w_memory.data();
      args.scale = static_cast<const float*>(scale_memory.data());
      args.bias = static_cast<const float*>(bias_memory.data());
      args.output_dtype = DataType::kInt8;
      args.activation = activation;
      const auto int8_kind = static_cast<Int8GemmKind>(kind);
      if (!Int8GemmSupported(args, int8_kind, context)) continue;
      Device output(rows * n);
      args.output = output.data();
      const std::string name = StrCat("int8 ", Name(int8_kind), " non-finite, activation ",
                                      static_cast<int>(activation));
      MustBeOk(LaunchInt8Gemm(args, int8_kind, context), name);
      MustBeOk(cudaDeviceSynchronize(), name.c_str());
      const Doubles got = output.Read(rows * n, DataType::kInt8);
      double worst = 0;
      for (int64_t i = 0; i < rows * n; ++i) {
        const double y = ActivateExactly(k * 0.01 + bias[i % n], activation);
        worst = std::max(worst, IntegerError(got[i], y, 1e-3));
      }
      Check(worst == 0, StrCat(name, " error ", worst));
    }
  }
}

inline void TestInt8Gemms() {
  const LaunchContext context = CurrentContext();
  const DataType types[] = {DataType::kInt8, DataType::kFloat16, DataType::kBFloat16,
                            DataType::kFloat32};
  for (const DataType dtype : types) {
    // Odd sizes, and sizes around those of tiles.
    for (auto [rows, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1},
                                                                                {5, 7, 13},
                                                                                {37, 26, 200},
                                                                                {20, 30, 31},
                                                                                {100, 96, 48},
                                                                                {64, 16, 16},
                                                                                {130, 144, 272},
                                                                                {65, 192, 128},
                                                                                {300, 200, 144},
                                                                                {129, 296, 1552},
                                                                                {17, 2304, 768},
                                                                                {63, 768, 3072}}) {
      TestInt8Gemm({rows, n, k, dtype, true}, context);
      TestInt8Gemm({rows, n, k, dtype, false}, context);
    }
    // BERT-base.
    for (int64_t rows : {1, 16, 33, 129, 1024}) {
      TestInt8Gemm({rows, 2304, 768, dtype, true}, context);
      TestInt8Gemm({rows, 768, 3072, dtype, false}, context);
    }
    TestInt8Gemm({130, 144, 3072, dtype, false, Int8Activation::kNone, true}, context);
  }
  for (const Int8Activation activation : kInt8Activations) {
    TestInt8Gemm({37, 26, 200, DataType::kInt8, true, activation}, context);
    TestInt8Gemm({200, 3072, 768, DataType::kInt8, true, activation}, context);
  }
  TestInt8Gemm({700, 3072, 768, DataType::kInt8, true, Int8Activation::kGeluTanh}, context);
  TestInt8Gemm({700, 3072, 768, DataType::kInt8, true, Int8Activation::kGeluErf}, context);
  // More rows than one wave of tiles.
  TestInt8Gemm({6000, 768, 3072, DataType::kFloat16, false}, context);
  TestInt8Gemm({6000, 768, 3072, DataType::kInt8, false}, context);
  TestInt8Gemm({6000, 2304, 768, DataType::kFloat16, true}, context);
  TestInt8Gemm({6000, 3072, 768, DataType::kInt8, true, Int8Activation::kGeluTanh}, context);
  TestInt8GemmNonFinite(context);
}

// Parts of k whose sums add up to the product, of integers exactly.
inline void TestInt8Partials(DataType input, int64_t rows, int64_t n, int64_t k, int num_partials,
                             bool extreme, const LaunchContext& context) {
  constexpr int64_t kGuard = 4096;
  const bool is_float8 = input == DataType::kFloat8;
  const double largest = is_float8 ? 448 : 127;
  Doubles x = extreme     ? Doubles(rows * k, -largest)
              : is_float8 ? Random(rows * k, 120.0)
                          : RandomIntegers(rows * k, -128);
  Doubles w = extreme ? Doubles(n * k, -largest) : RandomIntegers(n * k);
  const Device x_memory(&x, input), w_memory(&w, input);
  const int64_t elems = num_partials * rows * n;
  Device output(elems * 4 + kGuard);
  Int8GemmArgs args;
  args.rows = rows;
  args.n = n;
  args.k = k;
  args.input_dtype = input;
  args.x = x_memory.data();
  args.w = w_memory.data();
  args.output = output.data();
  args.num_partials = num_partials;
  const std::string name = StrCat(Name(input), " ", num_partials, " parts of ", rows, "x", n, "x",
                                  k, extreme ? " extreme" : "");
  MustBeOk(LaunchInt8Gemm(args, Int8GemmKind::kFewRows, context), name);
  MustBeOk(cudaDeviceSynchronize(), name.c_str());
  const Doubles parts = output.Read(elems, is_float8 ? DataType::kFloat32 : DataType::kInt32);
  double worst = 0;
  for (int64_t i = 0; i < rows * n; ++i) {
    double sum = 0, magnitude = 0, got = 0;
    for (int64_t e = 0; e < k; ++e) {
      const double product = x[i / n * k + e] * w[i % n * k + e];
      sum += product;
      magnitude += std::abs(product);
    }
    for (int part = 0; part < num_partials; ++part) got += parts[part * rows * n + i];
    // Products of float8 are exact, and added up in float32.
    const double error = is_float8 ? std::abs(got - sum) / magnitude * (1 << 16) : got - sum;
    if (!(std::abs(error) <= worst)) worst = std::abs(error);
  }
  const bool untouched = IsUntouched(output, elems * 4, kGuard);
  Check(worst <= (is_float8 ? 1 : 0) && untouched,
        StrCat(name, " error ", worst, untouched ? "" : " WRITES BEHIND THE LAST ROW"));
}

inline void TestInt8FewRows(DataType input) {
  const LaunchContext context = CurrentContext();
  const DataType types[] = {input, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat32};
  // BERT-base, BERT-large, MiniLM, sizes that fill no tile; more units of k than warps have at
  // once.
  const std::vector<std::pair<int64_t, int64_t>> sizes = {
      {2304, 768}, {768, 3072}, {1024, 1024}, {1152, 384}, {40, 80}, {8, 16}, {200, 2064}};
  for (const int64_t rows : {1, 15, 16, 17, 32, 33, 64, 100}) {
    for (const auto& [n, k] : sizes) {
      if (n * k > 1 << 20 && rows % 16 != 1 && rows != 64) continue;  // takes the reference long
      for (const DataType dtype : types) {
        const auto activation =
            dtype == input ? Int8Activation::kGeluTanhExact : Int8Activation::kNone;
        TestInt8Gemm({rows, n, k, dtype, rows % 2 == 1, activation, false, input}, context);
      }
      for (const int parts : {1, 3, kMaxNormPartials}) {
        TestInt8Partials(input, rows, n, k, parts, false, context);
      }
    }
  }
  for (const int parts : {1, 4}) TestInt8Partials(input, 33, 24, 4096, parts, true, context);
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{24, 40}, {12, 32}}) {
    Int8GemmArgs args;
    args.rows = 4;
    args.n = n;
    args.k = k;
    args.input_dtype = input;
    Check(!LaunchInt8Gemm(args, Int8GemmKind::kFewRows, context).ok(),
          StrCat("few rows: ", n, "x", k, " is refused"));
  }
  Int8GemmArgs args;
  args.rows = args.n = args.k = 64;
  args.input_dtype = input;
  args.num_partials = 2;
  for (int kind = 0; kind < kNumInt8GemmKinds; ++kind) {
    const auto int8_kind = static_cast<Int8GemmKind>(kind);
    if (int8_kind == Int8GemmKind::kFewRows) continue;
    Check(!LaunchInt8Gemm(args, int8_kind, context).ok(),
          StrCat(Name(int8_kind), " has no partial sums"));
  }
}

inline void TestInt8FewRows() { TestInt8FewRows(DataType::kInt8); }

// What the rule chooses on an H100, by sizes alone (benchmarks/gpu_profile.md).
inline void TestInt8Choices() {
  LaunchContext h100;
  h100.compute_capability = 90;
  h100.num_multiprocessors = 132;
  Int8GemmArgs args;
  const auto choose = [&](int64_t rows, int64_t n, int64_t k) {
    args.rows = rows;
    args.n = n;
    args.k = k;
    return SelectInt8Gemm(args, h100);
  };
  args.output_dtype = DataType::kFloat16;
  if (choose(64, 64, 64) == Int8GemmKind::kPlain) {
    Check(choose(1024, 768, 3072) == Int8GemmKind::kPlain, "built without CUTLASS: mma.sync");
    return;
  }
  for (const DataType input : {DataType::kInt8, DataType::kFloat8}) {
    args.input_dtype = input;
    const auto check = [&](int64_t rows, int64_t n, int64_t k, Int8GemmKind kind) {
      const Int8GemmKind chosen = choose(rows, n, k);
      Check(chosen == kind,
            StrCat(Name(input), " product ", rows, "x", k, "x", n, " to ", Name(args.output_dtype),
                   ": ", Name(chosen), ", expected ", Name(kind)));
    };
    for (const DataType output : {DataType::kFloat16, DataType::kBFloat16}) {
      args.output_dtype = output;
      check(128, 768, 768, Int8GemmKind::kCluster64x64Parts4);
      check(128, 2304, 768, Int8GemmKind::kHopperFew);
      check(256, 768, 768, Int8GemmKind::kHopperFew);
      check(256, 768, 3072, Int8GemmKind::kCluster64x64Parts2);
      check(256, 2304, 768, Int8GemmKind::kCluster64x96Pair);
      check(512, 768, 3072, Int8GemmKind::kHopperFew);
      check(512, 2304, 768, Int8GemmKind::kCluster128x96Pair);
      check(1024, 768, 768, Int8GemmKind::kCluster64x96Pair);
      check(1024, 2304, 768, Int8GemmKind::kCluster128x144Pair);
      check(1536, 768, 3072, Int8GemmKind::kCluster128x96Pair);
      check(12288, 768, 3072, Int8GemmKind::kHopper128);
      check(12288, 2304, 768, Int8GemmKind::kHopper128);
    }
    // No kernel by clusters has these outputs.
    args.output_dtype = input;
    args.activation = Int8Activation::kGeluTanh;
    check(128, 768, 3072, Int8GemmKind::kHopperFew);
    check(1024, 3072, 768, Int8GemmKind::kHopper128);
    args.activation = Int8Activation::kNone;
    args.output_dtype = DataType::kFloat32;
    check(1024, 768, 3072, Int8GemmKind::kHopper64);
  }
}

// Every kernel for the products of BERT-base, with the weights of eight layers in turn; the one
// that is chosen has a star.
inline void BenchInt8Gemms() {
  constexpr int64_t kLayers = 8, kMaxRows = 12288, kMaxSize = 3072;
  const LaunchContext context = CurrentContext();
  Doubles x = RandomIntegers(kMaxRows * kMaxSize), w = RandomIntegers(768 * kMaxSize * kLayers);
  const Device x_memory(&x, DataType::kInt8), w_memory(&w, DataType::kInt8),
      scale(std::vector<float>(kMaxSize, 1e-5f)), bias(std::vector<float>(kMaxSize, 0.1f)),
      out_scale(std::vector<float>{40.0f});
  Device output(kMaxRows * kMaxSize * 4);
  const struct {
    int64_t n, k;
    DataType dtype;
    bool has_bias;
    Int8Activation activation;
  } products[] = {{2304, 768, DataType::kFloat16, true, Int8Activation::kNone},
                  {768, 768, DataType::kFloat16, false, Int8Activation::kNone},
                  {768, 768, DataType::kInt8, false, Int8Activation::kNone},
                  {3072, 768, DataType::kInt8, true, Int8Activation::kGeluTanh},
                  {3072, 768, DataType::kInt8, true, Int8Activation::kGeluTanhExact},
                  {768, 3072, DataType::kFloat16, false, Int8Activation::kNone},
                  {768, 3072, DataType::kInt8, false, Int8Activation::kNone}};
  for (int64_t rows : {16, 32, 64, 128, 256, 512, 1024, 3072, 6144, 12288}) {
    for (const auto& p : products) {
      Int8GemmArgs args;
      args.rows = rows;
      args.n = p.n;
      args.k = p.k;
      args.x = x_memory.data();
      args.scale = static_cast<const float*>(scale.data());
      args.bias = p.has_bias ? static_cast<const float*>(bias.data()) : nullptr;
      args.out_scale = static_cast<const float*>(out_scale.data());
      args.activation = p.activation;
      args.output_dtype = p.dtype;
      args.output = output.data();
      printf("%-32s us", StrCat(rows, " x ", p.n, " x ", p.k, " to ", ft::Name(p.dtype)).c_str());
      for (int kind = 0; kind < kNumInt8GemmKinds; ++kind) {
        const auto int8_kind = static_cast<Int8GemmKind>(kind);
        if (!Int8GemmSupported(args, int8_kind, context)) continue;
        const double time = TimeLaunches(context, [&](int i, const LaunchContext& on) {
          args.w = static_cast<const char*>(w_memory.data()) + i % kLayers * 768 * kMaxSize;
          MustBeOk(LaunchInt8Gemm(args, int8_kind, on), "int8 product");
        });
        printf(" | %s%s %.1f", ft::cuda::Name(int8_kind),
               SelectInt8Gemm(args, context) == int8_kind ? "*" : "", time);
      }
      printf("\n");
      fflush(stdout);
    }
  }
}

// ---- Layer norm ---------------------------------------------------------------------------------

struct Int8NormCase {
  DataType dtype;
  int64_t rows, hidden;
  bool reads_integers, has_output, has_integers, rounds;
  int num_partials = 0;
  DataType quantized = DataType::kInt8;
};

inline void TestInt8Norm(const Int8NormCase& c, const LaunchContext& context) {
  constexpr int64_t kGuard = 1024;
  const int64_t elems = c.rows * c.hidden;
  const DataType in = c.reads_integers ? DataType::kInt8 : c.dtype;
  const auto numbers = [&] {
    return c.reads_integers ? RandomIntegers(elems) : Random(elems, 1.0);
  };
  Doubles x = numbers(), residual = numbers(), bias = Random(c.hidden, 0.5),
          gamma = Random(c.hidden, 0.1, 1.0), beta = Random(c.hidden, 0.1);
  const std::vector<float> factors = {0.02f, 0.03f, 127.0f / 2.0f, 2.0f / 127.0f};
  const Device x_memory(&x, in), residual_memory(&residual, in), bias_memory(&bias, c.dtype),
      gamma_memory(&gamma, c.dtype), beta_memory(&beta, c.dtype), factor_memory(factors);
  const bool is_float8 = c.quantized == DataType::kFloat8;
  // In place of x, and, unlike it, not rounded to the type.
  std::vector<int32_t> parts(c.num_partials * elems);
  const std::vector<float> product_scale = RandomFloats(c.hidden, 0.01, 0.5, 1.5);
  if (c.num_partials > 0) {
    std::uniform_int_distribution<int> integer(-4000, 4000);
    for (int64_t i = 0; i < elems; ++i) {
      int sum = 0;
      for (int part = 0; part < c.num_partials; ++part) {
        const int value = integer(generator);
        const float number = static_cast<float>(value);  // exact, in any order
        sum += value;
        if (is_float8) {
          memcpy(&parts[part * elems + i], &number, 4);
        } else {
          parts[part * elems + i] = value;
        }
      }
      x[i] = static_cast<float>(sum) * product_scale[i % c.hidden];
      if (c.reads_integers) x[i] = std::max(-128.0, std::min(127.0, std::nearbyint(x[i])));
    }
  }
  const Device part_memory(parts), product_scale_memory(product_scale);
  Device output(elems * SizeOf(c.dtype) + kGuard), integers(elems + kGuard);
  const float* const device_factors = static_cast<const float*>(factor_memory.data());
  Int8LayerNormArgs args;
  args.dtype = c.dtype;
  args.rows = c.rows;
  args.hidden_size = c.hidden;
  args.reads_integers = c.reads_integers;
  args.quantized_dtype = c.quantized;
  if (c.num_partials > 0) {
    args.partials = part_memory.data();
    args.num_partials = c.num_partials;
    args.product_scale = static_cast<const float*>(product_scale_memory.data());
  } else {
    args.input = x_memory.data();
  }
  args.residual = residual_memory.data();
  if (c.reads_integers) {
    args.input_unit = device_factors;
    args.residual_unit = device_factors + 1;
  }
  args.bias = bias_memory.data();
  args.gamma = gamma_memory.data();
  args.beta = beta_memory.data();
  args.epsilon = 1e-12f;
  if (c.has_output) args.output = output.data();
  if (c.has_integers) args.quantized = integers.data();
  if (c.has_integers || c.rounds) args.scale = device_factors + 2;
  if (c.rounds) args.output_unit = device_factors + 3;
  const std::string name = StrCat("int8 norm ", Name(c.dtype), " ", c.rows, "x", c.hidden,
                                  c.reads_integers ? " of integers" : "",
                                  c.has_output ? c.rounds ? ", rounded output" : ", output" : "",
                                  c.has_integers ? StrCat(", ", Name(c.quantized)) : "",
                                  c.num_partials > 0 ? StrCat(", parts ", c.num_partials) : "");
  MustBeOk(LaunchInt8LayerNorm(args, context), name);
  MustBeOk(cudaDeviceSynchronize(), name.c_str());
  Doubles want(elems);
  for (int64_t i = 0; i < elems; ++i) {
    want[i] = x[i] * (c.reads_integers ? factors[0] : 1.0f) + bias[i % c.hidden];
    if (c.reads_integers) residual[i] *= factors[1];
  }
  reference::AddAndNorm(&want, residual, gamma, beta, 1e-12);
  double worst = 0, worst_integer = 0;
  // A norm over a few numbers is worse conditioned.
  const double exact = c.hidden < 32 ? 1e-4 : 1e-5;
  const double bound = c.dtype == DataType::kFloat32   ? exact
                       : c.dtype == DataType::kFloat16 ? 3e-3
                                                       : 2e-2;
  const Doubles got = output.Read(elems, c.dtype), got_integers = integers.Read(elems, c.quantized);
  for (int64_t i = 0; i < elems; ++i) {
    const double steps = want[i] * factors[2];
    if (c.has_integers) {
      const double error = is_float8 ? Float8Error(got_integers[i], steps, 64 * exact)
                                     : IntegerError(got_integers[i], steps, 64 * exact);
      worst_integer = std::max(worst_integer, error);
    }
    if (!c.has_output) continue;
    const double error = c.rounds
                             ? IntegerError(std::nearbyint(got[i] / factors[3]), steps, 64 * exact)
                             : std::abs(got[i] - want[i]);
    if (!(error <= worst)) worst = error;
  }
  const bool untouched = IsUntouched(output, c.has_output ? elems * SizeOf(c.dtype) : 0, kGuard) &&
                         IsUntouched(integers, c.has_integers ? elems : 0, kGuard);
  Check(worst <= (c.rounds ? 0 : bound) && worst_integer == 0 && untouched,
        StrCat(name, " error ", worst, ", of integers ", worst_integer,
               untouched ? "" : " WRITES WHERE IT MAY NOT"));
}

inline void TestQuantize(DataType dtype, DataType q_dtype, int64_t elems,
                         const LaunchContext& context) {
  Doubles x = Random(elems, 1.0);
  if (elems > 4) {
    x[0] = NAN;
    x[1] = INFINITY;
    x[2] = -INFINITY;
    x[3] = 2.5 / 64;  // halves go to even
    x[4] = 3.5 / 64;
  }
  const Device input(&x, dtype), scale(std::vector<float>{64.0f});
  Device output(elems + 256);
  MustBeOk(LaunchQuantize(dtype, input.data(), elems, static_cast<const float*>(scale.data()),
                          q_dtype, output.data(), context),
           "quantize");
  MustBeOk(cudaDeviceSynchronize(), "quantize");
  const Doubles got = output.Read(elems, q_dtype);
  double worst = 0;
  for (int64_t i = 0; i < elems; ++i) {
    worst = std::max(worst, q_dtype == DataType::kInt8 ? IntegerError(got[i], x[i] * 64, 0)
                                                       : Float8Error(got[i], x[i] * 64, 0));
  }
  Check(worst == 0 && IsUntouched(output, elems, 256),
        StrCat("quantize ", Name(dtype), " to ", Name(q_dtype), " ", elems, " error ", worst));
}

inline void TestInt8Norms() {
  const LaunchContext context = CurrentContext();
  // Beside few rows, one for each other way in which rows are dealt out.
  const int64_t more = 10 * context.num_multiprocessors + 1,
                many = 20 * context.num_multiprocessors + 1;
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (int64_t elems : {1, 7, 100, 768 * 5, 300000}) {
      TestQuantize(dtype, DataType::kInt8, elems, context);
      TestQuantize(dtype, DataType::kFloat8, elems, context);
    }
    for (auto [rows, hidden] : std::vector<std::pair<int64_t, int64_t>>{{1, 768},
                                                                        {5, 256},
                                                                        {3, 1024},
                                                                        {more, 384},
                                                                        {more, 768},
                                                                        {more, 2048},
                                                                        {many, 768},
                                                                        {many, 1024},
                                                                        {7, 30},
                                                                        {9, 7},
                                                                        {2, 5000},
                                                                        {3, 4096},
                                                                        {4, 2048}}) {
      for (const bool reads_integers : {false, true}) {
        TestInt8Norm({dtype, rows, hidden, reads_integers, true, true, false}, context);
        TestInt8Norm({dtype, rows, hidden, reads_integers, true, false, false}, context);
        TestInt8Norm({dtype, rows, hidden, reads_integers, false, true, false}, context);
        TestInt8Norm({dtype, rows, hidden, reads_integers, true, true, true}, context);
        TestInt8Norm({dtype, rows, hidden, reads_integers, true, false, true}, context);
      }
    }
    // Partial sums.
    for (auto [rows, hidden] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 768}, {33, 384}, {5, 1024}, {64, 2048}, {3, 4096}, {7, 30}, {2, 9000}}) {
      for (const int parts : {1, 3, 4, 5, kMaxNormPartials}) {
        TestInt8Norm({dtype, rows, hidden, false, true, true, false, parts}, context);
        TestInt8Norm({dtype, rows, hidden, true, true, true, true, parts}, context);
        TestInt8Norm({dtype, rows, hidden, true, false, true, false, parts}, context);
        TestInt8Norm({dtype, rows, hidden, false, true, true, false, parts, DataType::kFloat8},
                     context);
      }
    }
  }
}

// ---- Attention ----------------------------------------------------------------------------------

// All kernels for a head size that the device has.
inline std::vector<AttentionChoice> AttentionChoices(AttentionArgs args,
                                                     const LaunchContext& context) {
  args.mask = args.qkv;  // as with a mask: never kWarpgroup
  const AttentionChoice best = SelectAttention(args, context);
  args.mask = nullptr;
  std::vector<AttentionChoice> choices;
  AttentionChoice choice = best;
  choice.kind = AttentionKind::kSimple;
  choices.push_back(choice);
  if (args.head_size > 128) return choices;
  choice.kind = AttentionKind::kTiled;
  choices.push_back(choice);
  if (best.kind == AttentionKind::kSplit) choices.push_back(best);
  if (best.kind != AttentionKind::kTensorCore) return choices;
  choice = best;
  for (int rows : {32, 64, 128}) {
    choice.rows_per_block = rows;
    choices.push_back(choice);
  }
  if (SelectAttention(args, context).kind == AttentionKind::kWarpgroup) {
    for (const AttentionChoice& c : WarpgroupAttentionChoices(args.head_size)) choices.push_back(c);
  }
  return choices;
}

inline void TestInt8AttentionCase(DataType dtype, int64_t d, bool packed,
                                  const LaunchContext& context) {
  constexpr int64_t kGuard = 2048;
  const int64_t heads = 3, s_max = 150, h = heads * d;
  const std::vector<int32_t> lengths = {150, 0, 64, 65, 1};
  const reference::Sequences s = reference::MakeSequences(s_max, lengths, packed);
  Doubles qkv = Random(s.num_tokens * 3 * h, 1.0);
  const Device input(&qkv, dtype);
  const Doubles expected = reference::Attention(qkv, s, heads, d, {});
  std::vector<int32_t> offsets = {0};
  for (int32_t length : lengths) offsets.push_back(offsets.back() + length);
  const std::vector<float> scale = {127.0f / 1.5f};
  const Device offset_memory(offsets), length_memory(lengths), scale_memory(scale);
  AttentionArgs args;
  args.dtype = dtype;
  args.batch_size = static_cast<int64_t>(lengths.size());
  args.max_seq_len = s_max;
  args.num_heads = heads;
  args.head_size = d;
  args.qkv = input.data();
  if (packed) {
    args.seq_offsets = static_cast<const int32_t*>(offset_memory.data());
    args.num_tokens = s.num_tokens;
  } else {
    args.key_lengths = static_cast<const int32_t*>(length_memory.data());
  }
  args.out_scale = static_cast<const float*>(scale_memory.data());
  // Steps: of the kernel's error, times what is kept.
  const double doubt = scale[0] * (dtype == DataType::kFloat32   ? 1e-5
                                   : dtype == DataType::kFloat16 ? 3e-3
                                                                 : 2.5e-2);
  for (const AttentionChoice& c : AttentionChoices(args, context)) {
    Device output(s.num_tokens * h + kGuard);
    args.output = output.data();
    const std::string name =
        StrCat("int8 attention ", Name(dtype), " D=", d, packed ? " packed" : "", " kernel ",
               static_cast<int>(c.kind), " rows ", c.rows_per_block, " keys ", c.keys_per_tile);
    MustBeOk(LaunchAttention(args, c, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    const Doubles got = output.Read(s.num_tokens * h, DataType::kInt8);
    double worst = 0;
    for (int64_t i = 0; i < s.num_tokens * h; ++i) {
      worst = std::max(worst, IntegerError(got[i], expected[i] * scale[0], doubt));
    }
    const bool untouched = IsUntouched(output, s.num_tokens * h, kGuard);
    Check(worst == 0 && untouched,
          StrCat(name, " error ", worst, untouched ? "" : " WRITES BEHIND THE LAST ROW"));
  }
}

inline void TestInt8Attention() {
  const LaunchContext context = CurrentContext();
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (int64_t d : {32, 64, 96, 128, 24, 72, 20, 160}) {
      for (const bool packed : {false, true}) TestInt8AttentionCase(dtype, d, packed, context);
    }
  }
}

constexpr int kFp8 = 0;

// ---- Whole layers -------------------------------------------------------------------------------

struct Int8LayerCase {
  int mode;  // int8_mode, or kFp8
  DataType dtype;
  int64_t heads, size, inner, seq_len;
  std::vector<int32_t> lengths;
  bool packed = false;
  bool mask = false;
  int64_t layers = 1;
  Activation activation = Activation::kGeluTanh;
  bool has_last_layer = true, all_outputs = false, plain = false;
  int64_t rows_past_end = 0;  // packed rows that nobody reads
  int64_t few_rows = -1;
  std::optional<NormGemmKind> norm_kind;
};

inline std::string Describe(const Int8LayerCase& c) {
  std::string text = StrCat(c.mode == kFp8 ? "fp8 layer" : StrCat("int8 layer mode ", c.mode), " ",
                            Name(c.dtype), " ", c.heads, "x", c.size, " I=", c.inner,
                            " S=", c.seq_len, " L=", c.layers, " lengths");
  for (int32_t length : c.lengths) text += StrCat(" ", length);
  if (c.packed) text += StrCat(" packed+", c.rows_past_end);
  if (c.mask) text += " mask";
  if (c.activation != Activation::kGeluTanh) {
    text += StrCat(" activation ", static_cast<int>(c.activation));
  }
  if (!c.has_last_layer) text += " not the last";
  if (c.all_outputs) text += " all outputs";
  if (c.norm_kind.has_value()) text += StrCat(" ", Name(*c.norm_kind));
  if (c.few_rows >= 0) text += StrCat(" few_rows=", c.few_rows);
  return text + (c.plain ? " plain" : "");
}

// Lists of different ranges for everything; what is not read is NaN.
inline std::vector<float> RandomScaleList(const EncoderConfig& config, float input, float output) {
  std::uniform_real_distribution<float> range(0.7f, 1.3f);
  std::vector<float> list(ScaleListSize(config), NAN);
  for (int slot : {9, 10, 11, 13, 14}) list[4 * slot] = 3.0f * range(generator);
  list[0] = input;
  list[60] = output;
  const int64_t hidden = config.hidden_size(), columns = 5 * hidden + config.inner_size;
  for (int64_t i = 0; i < columns; ++i) {
    const double inputs = i >= columns - hidden ? config.inner_size : hidden;
    list[80 + i] = static_cast<float>(1.7 / std::sqrt(inputs)) * range(generator);
  }
  return list;
}

// The weights of a model, on the device and in float64.
struct Int8Model {
  explicit Int8Model(const EncoderConfig& config) {
    layers.resize(config.num_layers);
    views.resize(config.num_layers);
    std::vector<LayerWeights> host_views(config.num_layers);
    for (int64_t l = 0; l < config.num_layers; ++l) {
      for (int f = 0; f < kWeightsPerLayer; ++f) {
        const Shape shape = WeightShape(config, f);
        const bool is_integer = WeightFields()[f].is_quantized;
        Doubles& v = layers[l].values[f];
        const bool gamma = f == 9 || f == 15;
        v = is_integer ? RandomIntegers(NumElements(shape))
                       : Random(NumElements(shape), 0.1, gamma ? 1.0 : 0.0);
        const DataType dtype = is_integer ? DataType::kInt8 : config.dtype;
        memory.push_back(std::make_unique<Device>(&v, dtype));
        views[l].*WeightFields()[f].view = {memory.back()->data(), dtype, shape};
      }
      lists.push_back(RandomScaleList(config, 3.0f + 0.1f * l, 3.0f + 0.1f * (l + 1)));
    }
    for (int64_t l = 0; l < config.num_layers; ++l) {
      const Shape shape = {ScaleListSize(config)};
      memory.push_back(std::make_unique<Device>(lists[l]));
      views[l].amax_list = {memory.back()->data(), DataType::kFloat32, shape};
      host_views[l].amax_list = {lists[l].data(), DataType::kFloat32, shape};
    }
    MustBeOk(ReadAllRanges(config, host_views, &ranges), "ranges");
  }

  std::vector<reference::Layer> layers;
  std::vector<LayerWeights> views;
  std::vector<std::vector<float>> lists;
  std::vector<LayerRanges> ranges;
  std::vector<std::unique_ptr<Device>> memory;
};

// Differences from float64 of the tokens of one output: the largest, its mean, and the largest of
// the rows where no integer is doubtful.
struct Int8Errors {
  double largest = 0, mean = 0, certain = 0;
  int64_t num_certain = 0, count = 0;

  void Add(double got, double want, bool is_certain) {
    const double error = std::abs(got - want);
    if (!(error <= largest)) largest = error;  // NaN stays
    mean += error;
    ++count;
    if (!is_certain) return;
    ++num_certain;
    if (!(error <= certain)) certain = error;
  }
};

inline void TestInt8Layer(const Int8LayerCase& c) {
  EncoderConfig config;
  config.dtype = c.dtype;
  config.num_heads = c.heads;
  config.head_size = c.size;
  config.inner_size = c.inner;
  config.num_layers = c.layers;
  config.activation = c.activation;
  config.int8_mode = c.mode;
  config.fp8_mode = c.mode == kFp8 ? 1 : 0;
  config.has_last_layer = c.has_last_layer;
  const std::string name = Describe(c);
  const int64_t h = config.hidden_size(), size = SizeOf(c.dtype);
  const int64_t batch_size = static_cast<int64_t>(c.lengths.size());
  reference::Sequences s = reference::MakeSequences(c.seq_len, c.lengths, c.packed);
  const Int8Model model(config);

  // What no query may attend to is NaN.
  Doubles x = Random((s.num_tokens + c.rows_past_end) * h, 1.0);
  const auto is_token = [&](int64_t b, int64_t i) { return c.mask || i < c.lengths[b]; };
  for (int64_t b = 0; b < batch_size; ++b) {
    for (int64_t i = 0; i < s.rows[b]; ++i) {
      if (!is_token(b, i)) std::fill_n(&x[(s.first[b] + i) * h], h, NAN);
    }
  }
  std::fill(x.begin() + s.num_tokens * h, x.end(), NAN);
  const Device input(&x, c.dtype);
  x.resize(s.num_tokens * h);
  Doubles mask(c.mask ? batch_size * c.seq_len * c.seq_len : 0);
  for (size_t i = 0; i < mask.size(); ++i) {
    mask[i] = i % c.seq_len == 0 || generator() % 2;  // every query sees a key
  }
  const Device mask_memory(&mask, c.dtype);
  std::vector<int32_t> offsets = {0};
  for (int32_t length : c.lengths) offsets.push_back(offsets.back() + length);
  const Device offset_memory(offsets), length_memory(c.lengths);
  if (c.mask && !c.packed) s.keys.assign(batch_size, c.seq_len);

  CudaEncoderOptions options;
  options.plain_int8 = c.plain;
  options.few_rows = c.few_rows;
  options.norm_kind = c.norm_kind;
  std::unique_ptr<Encoder> encoder;
  MustBeOk(CreateCudaEncoder(config, options, &encoder), name);
  cudaStream_t stream;
  MustBeOk(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  ExecutionContext execution;
  execution.stream = stream;
  const Device prepared(encoder->PreparedWeightBytes());
  MustBeOk(cudaDeviceSynchronize(), "before preparing");  // the stream does not wait for copies
  const Status status = encoder->PrepareWeights(model.views, prepared.data(), execution);
  MustBeOk(status, name);
  if (!status.ok()) return;
  EncoderBatch batch;
  batch.batch_size = batch_size;
  batch.max_seq_len = c.seq_len;
  batch.num_tokens = s.num_tokens;
  batch.num_rows = c.packed ? s.num_tokens + c.rows_past_end : 0;
  batch.packed = c.packed;
  if (c.packed) batch.seq_offsets = static_cast<const int32_t*>(offset_memory.data());
  if (!c.packed && !c.mask) {
    batch.key_lengths = static_cast<const int32_t*>(length_memory.data());
  }
  if (c.mask) batch.attention_mask = mask_memory.data();
  batch.input = input.data();
  const int64_t num_outputs = c.all_outputs ? c.layers : 1;
  std::vector<std::unique_ptr<Device>> outputs;
  for (int64_t i = 0; i < num_outputs; ++i) {
    outputs.push_back(std::make_unique<Device>(batch.rows() * h * size));
    batch.outputs.push_back(outputs.back()->data());
  }
  int64_t workspace_bytes = 0;
  MustBeOk(encoder->WorkspaceBytes(batch, execution, &workspace_bytes), name);
  const Device workspace(workspace_bytes);

  // Launched kernel by kernel, then captured, then replayed.
  std::vector<Doubles> first;
  bool repeatable = true;
  for (int run = 0; run < 3; ++run) {
    for (const auto& output : outputs) {
      MustBeOk(cudaMemset(output->data(), 0xff, batch.rows() * h * size), "poison");
    }
    MustBeOk(cudaDeviceSynchronize(), "before run");
    MustBeOk(encoder->Run(batch, prepared.data(), workspace.data(), execution), name);
    MustBeOk(cudaStreamSynchronize(stream), name.c_str());
    for (int64_t i = 0; i < num_outputs; ++i) {
      const Doubles y = outputs[i]->Read(s.num_tokens * h, c.dtype);
      if (run == 0) {
        first.push_back(y);
        continue;
      }
      for (int64_t b = 0; b < batch_size; ++b) {
        const int64_t tokens = std::min<int64_t>(s.rows[b], c.lengths[b]);
        for (int64_t e = s.first[b] * h; e < (s.first[b] + tokens) * h; ++e) {
          repeatable = repeatable && first[i][e] == y[e];
        }
      }
    }
  }
  cudaStreamDestroy(stream);

  reference::Quantizer quantizer(s, c.mode == kFp8);
  Int8Errors errors;
  for (int64_t l = 0; l < c.layers; ++l) {
    const bool is_last = c.has_last_layer && l + 1 == c.layers;
    x = reference::RunInt8Layer(x, {model.layers[l], model.ranges[l]}, config, is_last, s, mask,
                                &quantizer);
    if (!c.all_outputs && l + 1 < c.layers) continue;
    const Doubles& got = first[c.all_outputs ? l : 0];
    for (int64_t b = 0; b < batch_size; ++b) {
      for (int64_t i = 0; i < s.rows[b]; ++i) {
        if (!is_token(b, i)) continue;
        const int64_t row = s.first[b] + i;
        for (int64_t e = 0; e < h; ++e) {
          errors.Add(got[row * h + e], x[row * h + e], !quantizer.IsDoubtful(row));
        }
      }
    }
  }
  errors.mean /= std::max<int64_t>(1, errors.count);
  // Another integer here and there moves a result by some steps of 3 / 127.
  const bool one_step = c.layers == 1 && c.dtype != DataType::kBFloat16;
  // Tensor cores' sums of float8 are coarse, and a float8 number's neighbour is 1/16 away.
  const double largest = c.layers == 1 ? 0.3 : 0.6;
  const double mean = one_step ? (c.mode == kFp8 ? 0.02 : 0.01) : 0.05;
  // Of several layers or half precision float64 cannot say which integers there are.
  const bool is_exact = c.mode != kFp8 && c.layers == 1 && c.dtype == DataType::kFloat32;
  char text[160];
  snprintf(text, sizeof(text), " largest %.2e <= %.1e, mean %.2e <= %.1e, certain %.2e of %lld%s",
           errors.largest, largest, errors.mean, mean, errors.certain,
           static_cast<long long>(errors.num_certain), repeatable ? "" : " NOT REPEATABLE");
  Check(errors.count > 0 && errors.largest <= largest && errors.mean <= mean && repeatable &&
            (!is_exact || errors.certain <= 2e-4),
        name + text);
}

// Ranges that no integer has are refused where the weights are prepared.
inline void TestInt8Refusals() {
  EncoderConfig config;
  config.num_heads = 1;
  config.head_size = 4;
  config.inner_size = 6;
  config.num_layers = 2;
  config.int8_mode = 2;
  std::unique_ptr<Encoder> encoder;
  MustBeOk(CudaBackend().CreateEncoder(config, {}, &encoder), "encoder");
  Int8Model model(config);
  model.lists[1][36] = -1.0f;  // of the context
  const Device list(model.lists[1]), prepared(encoder->PreparedWeightBytes());
  model.views[1].amax_list.data = list.data();
  MustBeOk(cudaDeviceSynchronize(), "lists");
  const Status status = encoder->PrepareWeights(model.views, prepared.data(), {});
  Check(status.code() == StatusCode::kInvalidArgument &&
            status.message().find("amax_list[1]") != std::string::npos,
        StrCat("int8 range of -1: ", status.message()));
}

// igemm_config.in: what is tuned is written, read again and used; what is damaged is refused.
inline void TestInt8GemmConfig() {
  char directory[] = "/tmp/int8_config.XXXXXX";
  Check(mkdtemp(directory) != nullptr, "mkdtemp");
  const std::string path = Int8GemmConfigPath(directory);
  EncoderConfig config = BertBaseConfig(DataType::kFloat16);
  config.int8_mode = 2;
  const std::vector<std::string> report = TuneInto(directory, config);
  std::string environment;
  MustBeOk(Int8GemmEnvironment(&environment), "environment");
  std::vector<TunedInt8Gemm> rows;
  int num_foreign = 0;
  MustBeOk(ReadInt8GemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 4 && num_foreign == 0, "int8 GEMM test writes four rows");
  // Another kernel for the same product takes the place of the first; other GPUs' rows stay.
  const LaunchContext context = CurrentContext();
  rows[0].kind = Int8GemmKind::kPlain;
  MustBeOk(UpdateInt8GemmConfig(path, environment, {rows[0]}), "write");
  MustBeOk(UpdateInt8GemmConfig(path, "another/driver-1/kernels-1", {rows[1]}), "write");
  Int8Kinds kinds(false);
  kinds.LoadConfig(directory);
  Check(kinds.IsTuned(rows[0].product) && kinds.IsTuned(rows[3].product) &&
            kinds.Choose(rows[0].product, context) == Int8GemmKind::kPlain &&
            kinds.Choose(rows[3].product, context) == rows[3].kind,
        "int8 kernels are those of the file");
  Int8GemmArgs other = rows[0].product;
  other.n += 16;
  Check(kinds.Choose(other, context) == SelectInt8Gemm(other, context), "the rule where no row is");
  rows.clear();
  MustBeOk(ReadInt8GemmConfig(path, environment, &rows, &num_foreign), "read");
  Check(rows.size() == 4 && num_foreign == 1, "rows of another GPU are counted");
  // A kernel that the device cannot run for these sizes gives way.
  TunedInt8Gemm odd;
  odd.product.rows = 5;
  odd.product.n = 7;
  odd.product.k = 13;
  odd.kind = Int8GemmKind::kHopper128;
  kinds.Keep(odd);
  Check(kinds.Choose(odd.product, context) == Int8GemmKind::kPlain, "a kernel for other sizes");
  for (const char* damage : {"8 128 12 64 4 ### 1 768 10\n", "8 128 12 64 9 ### 1 1 1 1 -1 0 1 x\n",
                             "8 128 12 64 4 ### 1 1 1 1 -1 77 1 x\n"}) {
    std::ofstream(path, std::ios::app) << damage;
    rows.clear();
    Check(ReadInt8GemmConfig(path, environment, &rows, &num_foreign).code() ==
              StatusCode::kInvalidArgument,
          "a damaged igemm_config.in is refused");
    MustBeOk(UpdateInt8GemmConfig(path, environment, {odd}), "a damaged file is replaced");
  }
}

// Layers of every size and kind in these modes.
inline void TestQuantizedLayers(const std::vector<int>& modes) {
  for (const int mode : modes) {
    for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      for (const bool packed : {false, true}) {
        // Small ones: rows without doubt; masks, activations, lengths of 0, rows past the end.
        Int8LayerCase c{mode, dtype, 2, 16, 48, 5, {5, 0, 3, 1}, packed};
        TestInt8Layer(c);
        c.rows_past_end = packed ? 7 : 0;
        TestInt8Layer(c);
        c.mask = true;
        c.lengths = {5, 3, 1};
        TestInt8Layer(c);
        c.mask = false;
        for (Activation activation : {Activation::kGeluErf, Activation::kRelu}) {
          c.activation = activation;
          TestInt8Layer(c);
        }
        c.activation = Activation::kGeluTanh;
        c.has_last_layer = false;
        TestInt8Layer(c);
        // Sizes that are no multiple of anything.
        for (auto [heads, size, inner] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
                 {1, 7, 13}, {1, 26, 200}, {3, 5, 31}, {2, 100, 200}, {2, 160, 64}}) {
          TestInt8Layer({mode, dtype, heads, size, inner, 37, {37, 5, 0, 20}, packed});
        }
        // Layers after one another.
        Int8LayerCase deep{mode, dtype, 2, 32, 96, 40, {40, 9}, packed};
        deep.layers = 3;
        TestInt8Layer(deep);
        deep.all_outputs = true;
        TestInt8Layer(deep);
        deep.has_last_layer = false;
        TestInt8Layer(deep);
        // Few rows and not, in one sequence or two, of BERT-base, MiniLM and BERT-large.
        for (int32_t length : {1, 15, 16, 17, 32, 33, 64, 100}) {
          if (mode == 3) continue;  // computes as mode 2
          for (const int64_t few_rows : {1000, 0}) {
            const std::vector<int32_t> lengths[] = {{length}, {length, length / 2}};
            Int8LayerCase few{mode, dtype, 12, 32, 1536, length, lengths[length % 2], packed};
            few.few_rows = few_rows;
            TestInt8Layer(few);
            if (length % 16 != 0 || length > 32) continue;
            few.size = 64;
            few.inner = 3072;
            TestInt8Layer(few);
            few.heads = 16;
            few.inner = 4096;
            few.layers = 2;
            TestInt8Layer(few);
          }
        }
        // BERT-base, with every tile; without CUTLASS once.
        for (int32_t length : {16, 40, 97, 384}) {
          if (mode == 3) continue;  // computes as mode 2
          Int8LayerCase base{mode, dtype, 12, 64, 3072, length, {length, (length + 1) / 2}, packed};
          TestInt8Layer(base);
          if (length != 97) continue;
          base.plain = true;
          TestInt8Layer(base);
          base.plain = false;
          // Each kernel of products that end with a norm; modes 2 and 3 have none.
          if (mode != 1 && mode != kFp8) continue;
          base.layers = 2;
          for (int kind = 0; kind < kNumNormGemmKinds; ++kind) {
            base.norm_kind = static_cast<NormGemmKind>(kind);
            base.all_outputs = kind % 2 == 0;
            TestInt8Layer(base);
          }
        }
      }
    }
  }
}

inline void TestInt8Layers() {
  TestInt8Refusals();
  TestQuantizedLayers({1, 2, 3});
}

// False, with a word on it, where the GPU has no float8.
inline bool HasFloat8(const char* what) {
  const LaunchContext context = CurrentContext();
  if (context.compute_capability >= 89) return true;
  printf("skipped %s: compute capability %d has no float8\n", what, context.compute_capability);
  return false;
}

inline void TestFp8Layers() {
  if (HasFloat8("fp8_layers")) TestQuantizedLayers({kFp8});
}

inline void TestFp8FewRows() {
  if (HasFloat8("fp8_few_rows")) TestInt8FewRows(DataType::kFloat8);
}

// Products of float8 with all kernels and sizes.
inline void TestFp8Gemms() {
  if (!HasFloat8("fp8_gemm")) return;
  const LaunchContext context = CurrentContext();
  const auto test = [&](int64_t rows, int64_t n, int64_t k, DataType dtype, bool has_bias,
                        Int8Activation activation) {
    TestInt8Gemm({rows, n, k, dtype, has_bias, activation, false, DataType::kFloat8}, context);
  };
  constexpr Int8Activation kNone = Int8Activation::kNone;
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (auto [rows, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {1, 1, 1}, {5, 7, 13}, {37, 26, 200}, {64, 16, 16}, {130, 144, 272}, {65, 192, 128}}) {
      test(rows, n, k, dtype, true, kNone);
      test(rows, n, k, dtype, false, kNone);
    }
    for (int64_t rows : {1, 33, 129, 1024}) {
      test(rows, 2304, 768, dtype, true, kNone);
      test(rows, 768, 3072, dtype, false, kNone);
    }
  }
  for (const Int8Activation activation : kInt8Activations) {
    if (activation == kNone) continue;
    test(37, 26, 200, DataType::kFloat8, true, activation);
    test(200, 3072, 768, DataType::kFloat8, true, activation);
  }
  // More rows than one wave of tiles.
  test(6000, 768, 3072, DataType::kFloat16, false, kNone);
  test(6000, 3072, 768, DataType::kFloat8, true, Int8Activation::kGeluTanh);
  test(6000, 3072, 768, DataType::kFloat8, true, Int8Activation::kGeluErf);
}

// Each kernel of a layer once, for tools that follow every access to memory.
inline void TestEachQuantizedKernel(const std::vector<int>& modes) {
  for (const int mode : modes) {
    for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      for (const bool plain : {false, true}) {
        for (const bool packed : {false, true}) {
          // More rows than 64, and fewer.
          for (int32_t length : {70, 20}) {
            Int8LayerCase c{mode, dtype, 2, 64, 256, length, {length, 9}, packed};
            c.plain = plain;
            TestInt8Layer(c);
          }
        }
      }
      TestInt8Layer({mode, dtype, 1, 7, 13, 20, {20, 5}, true});
      // Attention and the product behind it in one kernel, and one tile of rows.
      for (const int64_t size : {32, 64})
        TestInt8Layer({mode, dtype, 2, size, 256, 13, {13}, true});
      Int8LayerCase separate{mode, dtype, 2, 64, 256, 20, {20, 9}, true};
      separate.few_rows = 0;
      TestInt8Layer(separate);
      // Sizes that kernels for few rows are compiled for.
      if (dtype != DataType::kFloat16) continue;
      TestInt8Layer({mode, dtype, 12, 64, 3072, 20, {20}, true});
      TestInt8Layer({mode, dtype, 16, 64, 1024, 13, {13}, true});
    }
  }
}
inline void TestEachInt8Kernel() { TestEachQuantizedKernel({1, 2}); }
inline void TestEachFp8Kernel() {
  if (HasFloat8("fp8_kernels")) TestEachQuantizedKernel({kFp8});
}

}  // namespace ft::cuda::testing
