// Split products of float32 on CUDA (tf_ops/cuda/gemm/split/split_gemm.h) against float64, beside
// what IEEE arithmetic makes of the same numbers.
#pragma once

#include <tuple>

#include "tests/cuda_support.h"
#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"
#include "tf_ops/cuda/rows/split_rows.h"

namespace ft::cuda::testing {

// What the device has of numbers that were split.
struct SplitNumbers {
  int64_t rows, k;
  Device halves, scale;

  SplitNumbers(int64_t num_rows, int64_t num_columns)
      : rows(num_rows), k(num_columns), halves(rows * SplitPitch(k) * 4), scale(rows * 4) {}

  float* scales() const { return static_cast<float*>(scale.data()); }

  // What the halves of a row stand for, with all that fill its last group; times 2^14.
  Doubles Read() const {
    const int64_t pitch = SplitPitch(k);
    const Doubles all = halves.Read(rows * 2 * pitch, DataType::kFloat16);
    const Doubles scale_of = scale.Read(rows, DataType::kFloat32);
    Doubles numbers(rows * pitch);
    for (int64_t i = 0; i < rows * pitch; ++i) {
      const int64_t row = i / pitch, column = i % pitch;
      const double* const group = &all[row * 2 * pitch + column / kSplitGroup * 2 * kSplitGroup];
      const int64_t at = column % kSplitGroup;
      numbers[i] = (group[at] + group[at + kSplitGroup]) * scale_of[row];
    }
    return numbers;
  }
};

// ---- Rows ---------------------------------------------------------------------------------------

inline void TestSplitRowsCase(int64_t rows, int64_t k, int activation, bool in_place,
                              const LaunchContext& context) {
  const int64_t pitch = in_place ? SplitPitch(k) : k;
  Doubles x = Random(rows * pitch, 1.0);
  for (int64_t row = 0; row < rows; ++row) {
    // Rows of very different size, and a number beside which others are small.
    const double factor = activation >= 0 ? 1.0 : std::exp2(row % 5 * 40 - 80);
    for (int64_t c = 0; c < pitch; ++c) x[row * pitch + c] *= factor;
    x[row * pitch + row % k] *= 100;
    if (row % 3 == 1) x[row * pitch + row % k] = 0;
  }
  const Device input(&x, DataType::kFloat32);
  const SplitNumbers split(rows, k);
  SplitRowsArgs args;
  args.rows = rows;
  args.k = k;
  args.x = static_cast<const float*>(input.data());
  args.x_pitch = pitch;
  args.has_activation = activation >= 0;
  if (args.has_activation) args.activation = static_cast<Activation>(activation);
  args.split = in_place ? input.data() : split.halves.data();
  args.scale = split.scales();
  const std::string name =
      StrCat("split rows ", rows, "x", k, " activation ", activation, in_place ? " in place" : "");
  MustBeOk(LaunchSplitRows(args, context), name);
  MustBeOk(cudaDeviceSynchronize(), name.c_str());
  if (in_place) {
    MustBeOk(cudaMemcpy(split.halves.data(), input.data(), rows * pitch * 4, cudaMemcpyDefault),
             "copy");
  }
  const Doubles got = split.Read();
  double worst = 0;  // in parts of what is allowed
  for (int64_t row = 0; row < rows; ++row) {
    Doubles y(SplitPitch(k), 0.0);
    double largest = 0;
    for (int64_t c = 0; c < k; ++c) {
      const double number = x[row * pitch + c];
      y[c] = args.has_activation ? reference::Activate(number, args.activation) : number;
      largest = std::max(largest, std::abs(y[c]));
    }
    for (int64_t c = 0; c < SplitPitch(k); ++c) {
      // An activation has float32's own error, and 1 + erf(x) that of 1.
      const double relative = args.has_activation ? 1e-6 : std::exp2(-22);
      const double of_input = args.has_activation && c < k ? std::abs(x[row * pitch + c]) : 0.0;
      const double bound =
          relative * std::abs(y[c]) + std::exp2(-23) * of_input + std::exp2(-39) * largest;
      const double error = std::abs(got[row * SplitPitch(k) + c] * std::exp2(-14) - y[c]);
      if (!(error <= bound)) worst = std::max(worst, bound > 0 ? error / bound : INFINITY);
      if (std::isnan(error)) worst = INFINITY;
    }
  }
  Check(worst == 0, StrCat(name, worst == 0 ? "" : ": times the allowed error ", worst));
}

inline void TestSplitRows() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  for (auto [rows, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 1},
                                                                 {3, 7},
                                                                 {5, 64},
                                                                 {33, 100},
                                                                 {2, 768},
                                                                 {300, 768},
                                                                 {2000, 768},
                                                                 {1500, 384},
                                                                 {1100, 1024},
                                                                 {7, 1024},
                                                                 {2, 3072},
                                                                 {300, 3072},
                                                                 {1500, 3072},
                                                                 {3, 4096},
                                                                 {300, 4096},
                                                                 {4, 8000},
                                                                 {3, 9000},
                                                                 {3, 20001}}) {
    for (int activation = -1; activation < 3; ++activation) {
      for (bool in_place : {false, true}) {
        TestSplitRowsCase(rows, k, activation, in_place, context);
      }
    }
  }
}

// ---- Products -----------------------------------------------------------------------------------

enum class SplitData { kNormal, kWide, kHuge, kTiny, kPositive, kOutliers, kNonFinite, kExtreme };
constexpr const char* kSplitDataNames[] = {"normal",   "wide",     "huge",       "tiny",
                                           "positive", "outliers", "non-finite", "extreme"};

struct SplitProduct {
  Doubles x, w, bias;              // [rows,k], [k,n], [n]
  Doubles exact, ieee, magnitude;  // [rows,n]; magnitude: what an error is a part of
};

inline SplitProduct MakeSplitProduct(int64_t rows, int64_t n, int64_t k, SplitData data) {
  SplitProduct p;
  p.x = Random(rows * k, 1.0);
  p.w = Random(k * n, 1.0 / std::sqrt(static_cast<double>(k)));
  p.bias = Random(n, data == SplitData::kHuge || data == SplitData::kTiny ? 0.0 : 1.0);
  std::normal_distribution<double> normal;
  for (double& v : p.x) {
    if (data == SplitData::kWide) v *= std::exp(3 * normal(generator));
    if (data == SplitData::kHuge) v *= 1e30;
    if (data == SplitData::kTiny) v *= 1e-30;
    if (data == SplitData::kPositive) v = std::abs(v);
  }
  for (double& v : p.w) {
    if (data == SplitData::kWide) v *= std::exp(normal(generator));
    if (data == SplitData::kPositive) v = std::abs(v);
  }
  if (data == SplitData::kOutliers) {
    for (int64_t row = 0; row < rows; ++row) p.x[row * k + row % k] = 1e5;
  }
  if (data == SplitData::kNonFinite) {
    const double values[] = {HUGE_VAL, -HUGE_VAL, std::nan("")};
    for (int64_t i = 0; i < 3; ++i) {
      p.x[std::min(i, rows - 1) * k + i * 7 % k] = values[i];
      p.w[(i * 5 + 3) % k * n + std::min(2 * i, n - 1)] = values[i];
    }
  }
  if (data == SplitData::kExtreme) {
    // The ends of float32's range, beside zeros and what is next to them.
    for (int64_t c = 0; c < n; c += 2) p.w[c] = 0;
    p.x[0] = HUGE_VAL;
    for (int64_t i = 0; i < k; ++i) p.x[rows / 2 * k + i] = 0;
    p.x[rows * k - 1] = 3.4e38;
    p.w[k * n - 1] = 1e-40;
    p.w[n - 1] = -1e-42;
  }
  return p;
}

inline void ComputeSplitProduct(int64_t rows, int64_t n, int64_t k, bool has_bias,
                                SplitProduct* p) {
  Doubles largest_x(rows), largest_w(n);
  const auto finite = [](double v) { return std::isfinite(v) ? std::abs(v) : 0.0; };
  for (int64_t i = 0; i < rows * k; ++i) {
    largest_x[i / k] = std::max(largest_x[i / k], finite(p->x[i]));
  }
  for (int64_t i = 0; i < k * n; ++i) {
    largest_w[i % n] = std::max(largest_w[i % n], finite(p->w[i]));
  }
  p->exact.resize(rows * n);
  p->ieee.resize(rows * n);
  p->magnitude.resize(rows * n);
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    Doubles exact(n), magnitude(n);
    std::vector<float> ieee(n);
    for (int64_t i = 0; i < k; ++i) {
      const double x = p->x[row * k + i];
      // What split numbers lose beside a larger one, 2^-39 of that one, as a part of 2^-22.
      const double lost = std::exp2(-17);
      for (int64_t c = 0; c < n; ++c) {
        const double w = p->w[i * n + c];
        exact[c] += x * w;
        magnitude[c] +=
            std::abs(x * w) + lost * (largest_x[row] * std::abs(w) + largest_w[c] * std::abs(x));
        ieee[c] = std::fma(static_cast<float>(x), static_cast<float>(w), ieee[c]);
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      const double bias = has_bias ? p->bias[c] : 0.0;
      p->exact[row * n + c] = exact[c] + bias;
      p->magnitude[row * n + c] = magnitude[c] + std::abs(bias);
      p->ieee[row * n + c] = ieee[c] + static_cast<float>(bias);
    }
  }
}

struct SplitErrors {
  double worst = 0, rms = 0;  // in parts of the magnitude, of the result's size
  int64_t wrong_kinds = 0;    // infinities and NaN where there should be none, or none
};

inline SplitErrors MeasureSplit(const Doubles& got, const SplitProduct& p) {
  const auto kind = [](double v) {
    // float64's results that float32 cannot hold are infinities.
    return std::isnan(v) ? 3 : v > 3.4028235677973366e38 ? 2 : v < -3.4028235677973366e38 ? 1 : 0;
  };
  SplitErrors errors;
  double squares = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (kind(got[i]) != kind(p.exact[i])) ++errors.wrong_kinds;
    if (kind(got[i]) != 0 || kind(p.exact[i]) != 0) continue;
    const double error = std::abs(got[i] - p.exact[i]);
    errors.worst = std::max(errors.worst, error / std::max(p.magnitude[i], 1e-300));
    squares += error * error;
    norm += p.exact[i] * p.exact[i];
  }
  errors.rms = std::sqrt(squares / std::max(norm, 1e-300));
  return errors;
}

inline void TestSplitGemm(int64_t rows, int64_t n, int64_t k, SplitData data, bool has_bias,
                          const LaunchContext& context) {
  constexpr int64_t kGuard = 32;  // floats behind each row, and rows behind the last
  SplitProduct product = MakeSplitProduct(rows, n, k, data);
  const Device x(&product.x, DataType::kFloat32), w(&product.w, DataType::kFloat32),
      bias(&product.bias, DataType::kFloat32);
  ComputeSplitProduct(rows, n, k, has_bias, &product);
  const SplitErrors ieee = MeasureSplit(product.ieee, product);
  const SplitNumbers split_x(rows, k), split_w(n, k);
  SplitRowsArgs split;
  split.rows = rows;
  split.k = k;
  split.x = static_cast<const float*>(x.data());
  split.x_pitch = k;
  split.split = split_x.halves.data();
  split.scale = split_x.scales();
  const std::string sizes =
      StrCat(rows, "x", n, "x", k, " ", kSplitDataNames[static_cast<int>(data)]);
  MustBeOk(LaunchSplitRows(split, context), sizes);
  MustBeOk(LaunchSplitWeights(static_cast<const float*>(w.data()), k, n, split_w.halves.data(),
                              split_w.scales(), context),
           sizes);
  int tested = 0;
  for (int kind = 0; kind < kNumSplitGemmKinds; ++kind) {
    for (int num_splits : {1, 2, 3, 8}) {
      const auto split_kind = static_cast<SplitGemmKind>(kind);
      const int64_t guard = num_splits == 1 ? kGuard : 0;
      SplitGemmArgs args;
      args.rows = rows;
      args.n = n;
      args.k = k;
      args.x = split_x.halves.data();
      args.x_scale = split_x.scales();
      args.w = split_w.halves.data();
      args.w_scale = split_w.scales();
      args.bias = has_bias && num_splits == 1 ? static_cast<const float*>(bias.data()) : nullptr;
      args.num_splits = num_splits;
      args.output_pitch = n + guard;
      if (!SplitGemmSupported(args, split_kind, context)) continue;
      ++tested;
      const int64_t used = num_splits * rows * args.output_pitch, behind = 64 * args.output_pitch;
      Device output((used + behind) * 4);
      args.output = static_cast<float*>(output.data());
      const std::string name =
          StrCat(Name(split_kind), " ", sizes, has_bias ? " bias" : "", " in ", num_splits);
      MustBeOk(LaunchSplitGemm(args, split_kind, context), name);
      MustBeOk(cudaDeviceSynchronize(), name.c_str());
      const Doubles all = output.Read(used + behind, DataType::kFloat32);
      Doubles got(rows * n, 0.0);
      bool untouched = true;
      for (int64_t i = 0; i < used + behind; ++i) {
        const int64_t row = i / args.output_pitch, column = i % args.output_pitch;
        if (i < used && column < n) {
          double& sum = got[row % rows * n + column];
          // As the layer norm adds them.
          sum = num_splits == 1 ? all[i] : static_cast<float>(sum) + static_cast<float>(all[i]);
        } else {
          untouched = untouched && std::isnan(all[i]);
        }
      }
      for (int64_t i = 0; num_splits > 1 && has_bias && i < rows * n; ++i) {
        got[i] = static_cast<float>(got[i]) + static_cast<float>(product.bias[i % n]);
      }
      const SplitErrors errors = MeasureSplit(got, product);
      // Two numbers of 22 bits, and sums that are no worse than IEEE's. Of a few results most may
      // be small by chance, and rms is in parts of their size.
      const double bound = ieee.worst + std::exp2(-21);
      const double rms_bound = 1.5 * ieee.rms + (rows * n < 64 ? 1e-6 : 1e-7);
      Check(
          errors.worst <= bound && errors.rms <= rms_bound && errors.wrong_kinds == 0 && untouched,
          StrCat(name, " error ", errors.worst, " <= ", bound, ", rms ", errors.rms,
                 " <= ", rms_bound, ", IEEE ", ieee.worst, " and ", ieee.rms, ", wrong kinds ",
                 errors.wrong_kinds, untouched ? "" : " WRITES ELSEWHERE"));
    }
  }
  if (context.compute_capability == kSplitCapability) {
    Check(tested > 0, StrCat("split product ", sizes, ": kernels tested ", tested));
  }
}

inline void TestSplitGemms() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  // Odd sizes, and sizes around those of tiles and groups.
  for (auto [rows, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 8, 7},
                                                                              {1, 4, 1},
                                                                              {12, 48, 16},
                                                                              {37, 52, 100},
                                                                              {16, 64, 64},
                                                                              {100, 16, 24},
                                                                              {130, 264, 33},
                                                                              {127, 128, 256},
                                                                              {129, 132, 96},
                                                                              {32, 2304, 768},
                                                                              {64, 3072, 768}}) {
    TestSplitGemm(rows, n, k, SplitData::kNormal, true, context);
    TestSplitGemm(rows, n, k, SplitData::kNormal, false, context);
  }
  for (const SplitData data :
       {SplitData::kNormal, SplitData::kWide, SplitData::kHuge, SplitData::kTiny,
        SplitData::kPositive, SplitData::kOutliers, SplitData::kNonFinite, SplitData::kExtreme}) {
    TestSplitGemm(32, 64, 96, data, true, context);
    TestSplitGemm(140, 264, 40, data, false, context);
    TestSplitGemm(200, 768, 768, data, true, context);
    TestSplitGemm(40, 256, 3072, data, false, context);
  }
  // More tiles than multiprocessors.
  TestSplitGemm(3000, 768, 192, SplitData::kNormal, true, context);
}

// What the rules choose on an H100, by sizes alone (benchmarks/gpu_profile.md).
inline void TestSplitChoices() {
  if (!SplitSizesSupported(768, 3072)) return Check(true, "built without split products");
  LaunchContext h100;
  h100.compute_capability = kSplitCapability;
  h100.num_multiprocessors = 132;
  h100.max_shared_bytes = 227 << 10;
  AttentionArgs attention;
  attention.num_heads = 12;
  attention.head_size = 64;
  for (auto [batch, length, kind] :
       std::vector<std::tuple<int64_t, int64_t, AttentionKind>>{{1, 32, AttentionKind::kTiled},
                                                                {11, 32, AttentionKind::kTiled},
                                                                {12, 32, AttentionKind::kSplit},
                                                                {1, 33, AttentionKind::kSplit},
                                                                {32, 384, AttentionKind::kSplit}}) {
    attention.batch_size = batch;
    attention.max_seq_len = length;
    const AttentionChoice choice = SelectAttention(attention, h100);
    Check(choice.kind == kind,
          StrCat("attention ", batch, "x", length, ": kernel ", static_cast<int>(choice.kind),
                 ", expected ", static_cast<int>(kind), ": ", choice.reason));
  }
  for (auto [rows, n, k, kind] : std::vector<std::tuple<int64_t, int64_t, int64_t, SplitGemmKind>>{
           {1, 2304, 768, SplitGemmKind::kFewRows},
           {32, 3072, 768, SplitGemmKind::kFewRows},
           {32, 768, 3072, SplitGemmKind::kFewRows},  // in parts
           {33, 768, 3072, SplitGemmKind::kHopper64},
           {33, 2304, 768, SplitGemmKind::kHopper64},
           {1024, 3072, 768, SplitGemmKind::kHopper64},
           {12288, 3072, 768, SplitGemmKind::kHopper128}}) {
    SplitGemmArgs product;
    product.rows = rows;
    product.n = product.output_pitch = n;
    product.k = k;
    product.num_splits = n == 768 ? SplitGemmSplits(rows, n, k, h100) : 1;
    const SplitGemmKind chosen = SelectSplitGemm(product, -1, h100);
    Check(chosen == kind, StrCat("split product ", rows, "x", n, "x", k, " in ", product.num_splits,
                                 ": ", Name(chosen), ", expected ", Name(kind)));
  }
}

// Each kernel once, for tools that follow every access to memory.
inline void TestEachSplitKernel() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  TestSplitRowsCase(3, 7, 0, false, context);
  TestSplitRowsCase(3, 100, 0, true, context);
  TestSplitRowsCase(5, 3072, 0, true, context);
  TestSplitRowsCase(300, 3072, 0, true, context);
  TestSplitRowsCase(1100, 768, -1, false, context);
  TestSplitGemm(20, 64, 256, SplitData::kNormal, true, context);
  TestSplitGemm(140, 132, 96, SplitData::kNormal, true, context);
  TestSplitGemm(130, 264, 33, SplitData::kNormal, false, context);
}

// ---- Times --------------------------------------------------------------------------------------

// Every kernel for the products of BERT-base, with the weights of eight layers in turn, and what
// goes with them; what is chosen has a star.
inline void BenchSplit() {
  constexpr int64_t kLayers = 8, kMaxRows = 12288, kMaxSize = 3072;
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  Doubles numbers = Random(kMaxRows * kMaxSize, 1.0);
  const Device x(&numbers, DataType::kFloat32);
  Device inner(kMaxRows * kMaxSize * 4), output(kMaxRows * kMaxSize * 4);
  const SplitNumbers split_x(kMaxRows, kMaxSize), split_w(768 * kLayers, kMaxSize);
  SplitRowsArgs rows_args;
  rows_args.rows = kMaxRows;
  rows_args.k = rows_args.x_pitch = kMaxSize;
  rows_args.x = static_cast<const float*>(x.data());
  rows_args.split = split_x.halves.data();
  rows_args.scale = split_x.scales();
  MustBeOk(LaunchSplitRows(rows_args, context), "rows");
  rows_args.rows = 768 * kLayers;
  rows_args.split = split_w.halves.data();
  rows_args.scale = split_w.scales();
  MustBeOk(LaunchSplitRows(rows_args, context), "weights");
  const Device scale(std::vector<float>(kMaxRows, 1.f / 65536));
  for (int64_t rows : {16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 12288}) {
    for (auto [n, k] : std::vector<std::pair<int64_t, int64_t>>{
             {2304, 768}, {768, 768}, {3072, 768}, {768, 3072}}) {
      const int wanted = n == 768 ? SplitGemmSplits(rows, n, k, context) : 1;
      printf("%-24s", StrCat(rows, " x ", n, " x ", k).c_str());
      for (int kind = 0; kind < kNumSplitGemmKinds; ++kind) {
        for (int num_splits : {1, 2, 4, 6, 8}) {
          SplitGemmArgs args;
          args.rows = rows;
          args.n = args.output_pitch = n;
          args.k = k;
          args.x = split_x.halves.data();
          args.x_scale = args.w_scale = static_cast<const float*>(scale.data());
          args.num_splits = num_splits;
          if (num_splits == 1) args.bias = args.w_scale;
          args.output = static_cast<float*>(output.data());
          const auto split_kind = static_cast<SplitGemmKind>(kind);
          const bool skipped =
              num_splits > 1 && (n != 768 || rows > 1024 || (rows > 256 && num_splits > 2));
          if (skipped || (split_kind == SplitGemmKind::kFewRows && rows > 128) ||
              !SplitGemmSupported(args, split_kind, context)) {
            continue;
          }
          const double time = TimeLaunches(context, [&](int i, const LaunchContext& on) {
            args.w =
                static_cast<const char*>(split_w.halves.data()) + i % kLayers * 768 * kMaxSize * 4;
            MustBeOk(LaunchSplitGemm(args, split_kind, on), "split product");
          });
          const bool chosen =
              num_splits == wanted && SelectSplitGemm(args, -1, context) == split_kind;
          printf("  %s/%d %.1f%s", Name(split_kind) + 6, num_splits, time, chosen ? "*" : "");
        }
      }
      printf("   us\n");
      fflush(stdout);
    }
    SplitRowsArgs args;
    args.rows = rows;
    args.k = args.x_pitch = 768;
    args.x = static_cast<const float*>(x.data());
    args.split = inner.data();
    args.scale = split_x.scales();
    const double plain = TimeLaunches(context, [&](int, const LaunchContext& on) {
      MustBeOk(LaunchSplitRows(args, on), "split rows");
    });
    args.k = args.x_pitch = kMaxSize;
    args.has_activation = true;
    const double activated = TimeLaunches(context, [&](int, const LaunchContext& on) {
      MustBeOk(LaunchSplitRows(args, on), "split rows");
    });
    printf("%lld rows split: of 768 %.1f us, of %lld activated %.1f us\n",
           static_cast<long long>(rows), plain, static_cast<long long>(kMaxSize), activated);
  }
  for (auto [batch, length] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 32}, {1, 128}, {8, 32}, {8, 128}, {32, 128}, {32, 384}}) {
    AttentionArgs args;
    args.batch_size = batch;
    args.max_seq_len = length;
    args.num_heads = 12;
    args.head_size = 64;
    args.qkv = x.data();
    args.output = output.data();
    printf("attention %lldx%lld:", static_cast<long long>(batch), static_cast<long long>(length));
    const AttentionChoice best = SelectAttention(args, context);
    for (const AttentionKind kind : {AttentionKind::kTiled, AttentionKind::kSplit}) {
      AttentionChoice choice = best;
      choice.kind = kind;
      const double time = TimeLaunches(context, [&](int, const LaunchContext& on) {
        MustBeOk(LaunchAttention(args, choice, on), "attention");
      });
      printf(" %s %.1f us%s", kind == AttentionKind::kTiled ? "IEEE" : "split", time,
             kind == best.kind ? "*" : "");
    }
    printf("\n");
  }
}

}  // namespace ft::cuda::testing
