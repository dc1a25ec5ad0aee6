// Products of 8 bits that end with a layer norm on CUDA (tf_ops/cuda/gemm/norm/norm_gemm.h) against
// float64, and where plans of layers have them.
#pragma once

#include <variant>

#include "tests/cuda_int8.h"
#include "tests/cuda_support.h"
#include "tf_ops/cuda/gemm/norm/norm_gemm.h"
#include "tf_ops/cuda/layer_plan.h"

namespace ft::cuda::testing {

struct NormGemmCase {
  DataType input, dtype;
  int64_t rows, n, k;
  double mean = 0;              // of the residual, whose deviation is 1
  bool is_constant = false;     // x is 0; bias and residual are one number each: the variance is 0
  bool has_non_finite = false;  // residuals of rows 1 and 3, where there are such rows
  float epsilon = 1e-12f;
  bool has_quantized = true;
};

inline std::string Describe(const NormGemmCase& c) {
  return StrCat(Name(c.input), " ", c.rows, "x", c.n, "x", c.k, " to ", Name(c.dtype),
                c.mean != 0 ? StrCat(" mean ", c.mean) : "", c.is_constant ? " constant" : "",
                c.has_non_finite ? " non-finite" : "", " epsilon ", c.epsilon,
                !c.has_quantized ? " without integers" : "");
}

// In float64: what is expected, and how far float32 sums may be from it before they are rounded.
struct NormGemmReference {
  Doubles output, doubt;
};

inline NormGemmReference ComputeNormGemm(const NormGemmCase& c, const Doubles& x, const Doubles& w,
                                         const std::vector<float>& scale, const Doubles& bias,
                                         const Doubles& residual, const Doubles& gamma,
                                         const Doubles& beta) {
  NormGemmReference result;
  Doubles& y = result.output = Doubles(c.rows * c.n);
  result.doubt = Doubles(c.rows * c.n);
#ifdef _OPENMP
#pragma omp parallel for
#endif
  for (int64_t row = 0; row < c.rows; ++row) {
    double mean = 0, variance = 0, magnitude = 0, largest = 0;
    for (int64_t column = 0; column < c.n; ++column) {
      double sum = 0, sum_magnitude = 0;
      for (int64_t i = 0; i < c.k; ++i) {
        const double product = x[row * c.k + i] * w[column * c.k + i];
        sum += product;
        sum_magnitude += std::abs(product);
      }
      double& value = y[row * c.n + column];
      value = sum * scale[column] + bias[column] + residual[row * c.n + column];
      magnitude = std::max(magnitude, sum_magnitude * scale[column]);
      largest = std::max(largest, std::abs(value));
      mean += value / c.n;
    }
    for (int64_t column = 0; column < c.n; ++column) {
      variance += std::pow(y[row * c.n + column] - mean, 2) / c.n;
    }
    const double deviation = std::sqrt(variance + c.epsilon);
    // Tensor cores keep some 13 bits of the largest of what they add up in float8.
    const double of_sums = c.input == DataType::kFloat8 ? magnitude / kFloat8SumParts : 0;
    const double doubt = c.is_constant ? 0 : (1e-6 * (magnitude + largest) + of_sums) / deviation;
    for (int64_t column = 0; column < c.n; ++column) {
      double& value = y[row * c.n + column];
      value = (value - mean) / deviation * gamma[column] + beta[column];
      result.doubt[row * c.n + column] = doubt * (std::abs(gamma[column]) + std::abs(value));
    }
  }
  return result;
}

inline void TestNormGemm(const NormGemmCase& c, const LaunchContext& context) {
  constexpr int64_t kGuard = 4096;
  Doubles x = RandomIntegers(c.rows * c.k), w = RandomIntegers(c.n * c.k);
  Doubles residual = Random(c.rows * c.n, 1.0, c.mean), bias = Random(c.n, 0.5),
          gamma = Random(c.n, 0.1, 1.0), beta = Random(c.n, 0.1);
  if (c.is_constant) {
    std::fill(x.begin(), x.end(), 0.0);
    std::fill(bias.begin(), bias.end(), 0.3);
    for (int64_t i = 0; i < c.rows * c.n; ++i) residual[i] = 1.1 + 0.7 * (i / c.n % 5);
  }
  for (const int64_t row : {1, 3}) {
    if (!c.has_non_finite || row >= c.rows) continue;
    residual[row * c.n + 5] = row == 1 ? NAN : INFINITY;
  }
  // Sums have a deviation of about 1.
  const double unit = 1.0 / (73.0 * 73.0 * std::sqrt(static_cast<double>(c.k)));
  const std::vector<float> scale = RandomFloats(c.n, unit, 0.5, 1.5), quantized_scale = {31.7f};
  const Device x_memory(&x, c.input), w_memory(&w, c.input), residual_memory(&residual, c.dtype),
      bias_memory(&bias, c.dtype), gamma_memory(&gamma, c.dtype), beta_memory(&beta, c.dtype),
      scale_memory(scale), quantized_scale_memory(quantized_scale);
  NormGemmArgs args;
  args.dtype = c.dtype;
  args.input_dtype = c.input;
  args.rows = c.rows;
  args.n = c.n;
  args.k = c.k;
  args.x = x_memory.data();
  args.w = w_memory.data();
  args.scale = static_cast<const float*>(scale_memory.data());
  args.bias = bias_memory.data();
  args.residual = residual_memory.data();
  args.gamma = gamma_memory.data();
  args.beta = beta_memory.data();
  args.epsilon = c.epsilon;
  if (c.has_quantized) {
    args.quantized_scale = static_cast<const float*>(quantized_scale_memory.data());
  }
  const NormGemmReference want = ComputeNormGemm(c, x, w, scale, bias, residual, gamma, beta);
  // Half a unit in the last place of T.
  const double places = c.dtype == DataType::kFloat16 ? 0.51 / 1024 : 0.51 / 128;
  for (int number = 0; number < kNumNormGemmKinds; ++number) {
    const auto kind = static_cast<NormGemmKind>(number);
    if (!NormGemmSupported(args, context)) continue;
    const std::string name = StrCat(Name(kind), ": ", Describe(c));
    const int64_t elems = c.rows * c.n, sums_bytes = NormSumsBytes(c.rows);
    Device output(elems * SizeOf(c.dtype) + kGuard), quantized(elems + kGuard);
    // As Device leaves them: 0xff.
    Device sums(sums_bytes + kGuard), next_sums(sums_bytes + kGuard);
    MustBeOk(cudaMemset(next_sums.data(), 0, sums_bytes), "sums of a launch before");
    args.output = output.data();
    args.quantized = c.has_quantized ? quantized.data() : nullptr;
    args.sums = sums.data();
    args.next_sums = next_sums.data();
    MustBeOk(LaunchNormGemm(args, kind, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    const Doubles got = output.Read(elems, c.dtype), got_quantized = quantized.Read(elems, c.input);
    double worst = 0, worst_quantized = 0;
    for (int64_t i = 0; i < elems; ++i) {
      const double doubt = want.doubt[i];
      const bool is_nan = std::isnan(want.output[i]);
      // Of halves below 2^-14 the unit is 2^-24.
      const double error = is_nan ? (std::isnan(got[i]) ? 0 : INFINITY)
                                  : std::abs(got[i] - want.output[i]) /
                                        ((std::abs(want.output[i]) + 1e-4) * places + doubt);
      if (!(error <= worst)) worst = error;
      if (!c.has_quantized) continue;
      const double number_of = want.output[i] * quantized_scale[0],
                   number_doubt = doubt * quantized_scale[0] + 2e-4;
      const double wrong = c.input == DataType::kInt8
                               ? IntegerError(got_quantized[i], number_of, number_doubt)
                               : Float8Error(got_quantized[i], number_of, number_doubt);
      if (!(wrong <= worst_quantized)) worst_quantized = wrong;
    }
    const bool untouched = IsUntouched(output, elems * SizeOf(c.dtype), kGuard) &&
                           IsUntouched(quantized, c.has_quantized ? elems : 0, kGuard) &&
                           IsUntouched(sums, sums_bytes, kGuard) &&
                           IsUntouched(next_sums, sums_bytes, kGuard);
    // Again, with the buffers of sums in turn.
    bool repeatable = true;
    if (kind == NormGemmKind::kGroup) {
      repeatable = IsUntouched(next_sums, 0, sums_bytes);
      std::swap(args.sums, args.next_sums);
    }
    MustBeOk(cudaMemset(output.data(), 0xff, elems * SizeOf(c.dtype)), "poison");
    MustBeOk(LaunchNormGemm(args, kind, context), name);
    MustBeOk(cudaDeviceSynchronize(), name.c_str());
    const Doubles again = output.Read(elems, c.dtype);
    for (int64_t i = 0; i < elems; ++i) {
      repeatable = repeatable && (got[i] == again[i] || std::isnan(got[i]) == std::isnan(again[i]));
    }
    Check(worst <= 1 && worst_quantized == 0 && untouched && repeatable,
          StrCat(name, " error ", worst, " <= 1, of 8 bits ", worst_quantized,
                 untouched ? "" : " WRITES WHERE IT MAY NOT", repeatable ? "" : " NOT REPEATABLE"));
  }
}

// Types of x, and of the output.
inline std::vector<std::pair<DataType, DataType>> NormGemmTypes() {
  return {{DataType::kFloat8, DataType::kFloat16},
          {DataType::kFloat8, DataType::kBFloat16},
          {DataType::kInt8, DataType::kFloat16},
          {DataType::kInt8, DataType::kBFloat16}};
}

// Each kernel once or twice, for tools that follow every access to memory.
inline void TestEachNormKernel() {
  const LaunchContext context = CurrentContext();
  for (const auto& [input, dtype] : NormGemmTypes()) {
    for (const int64_t rows : {70, 200}) TestNormGemm({input, dtype, rows, 768, 80}, context);
    TestNormGemm({input, dtype, 70, 1024, 80}, context);
  }
}

inline void TestNormGemms() {
  const LaunchContext context = CurrentContext();
  for (const auto& [input, dtype] : NormGemmTypes()) {
    // Around the rows of a warpgroup and of a block; k in odd multiples of what is copied at once.
    constexpr int64_t k = 144;
    for (int64_t rows : {1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 400}) {
      TestNormGemm({input, dtype, rows, 768, k}, context);
    }
    for (int64_t rows : {1, 65, 193, 300})
      TestNormGemm({input, dtype, rows, 1024, k + 64}, context);
    for (int64_t few_k : {16, 48}) TestNormGemm({input, dtype, 70, 768, few_k}, context);
    // BERT's; and more rows than all blocks have at a time.
    TestNormGemm({input, dtype, 100, 768, 768}, context);
    TestNormGemm({input, dtype, 200, 768, 3072}, context);
    TestNormGemm({input, dtype, 40, 1024, 4096}, context);
    TestNormGemm({input, dtype, 2300, 768, 64}, context);
    TestNormGemm({input, dtype, 2300, 1024, 64}, context);
    NormGemmCase c{input, dtype, 70, 768, k};
    c.mean = 100;
    TestNormGemm(c, context);
    c.mean = -3000;
    TestNormGemm(c, context);
    c.mean = 0;
    c.epsilon = 0.5f;
    TestNormGemm(c, context);
    c.has_non_finite = true;
    TestNormGemm(c, context);
    c.has_non_finite = false;
    c.has_quantized = false;
    TestNormGemm(c, context);
    c.has_quantized = true;
    for (const float epsilon : {1e-12f, 1e-5f}) {
      for (const int64_t n : {768, 1024}) {
        c.is_constant = true;
        c.epsilon = epsilon;
        c.n = n;
        TestNormGemm(c, context);
      }
    }
  }
  // In tiles of one to three warpgroups, several a block.
  for (const int64_t rows : {6000, 12300}) {
    TestNormGemm({DataType::kFloat8, DataType::kFloat16, rows, 768, 64}, context);
  }
}

// Plans of BERT's sizes have products that end with a norm, others have not.
inline void TestNormChoices() {
  const LaunchContext context = CurrentContext();
  const auto count = [&](DataType dtype, int64_t heads, int64_t rows, int int8_mode, int fp8_mode,
                         const PlanOptions& options) {
    EncoderConfig config;
    config.dtype = dtype;
    config.num_heads = heads;
    config.head_size = 64;
    config.inner_size = 4 * config.hidden_size();
    config.int8_mode = int8_mode;
    config.fp8_mode = fp8_mode;
    EncoderBatch batch;
    batch.batch_size = 1;
    batch.max_seq_len = batch.num_tokens = rows;
    const WeightLayout weights(config, false);
    const LayerPlan plan = MakeLayerPlan(config, weights, batch, options, context);
    int fused = 0, norms = 0;
    for (const Step& step : plan.steps) {
      fused += std::holds_alternative<NormGemmStep>(step);
      norms += std::holds_alternative<NormStep>(step) || std::holds_alternative<Int8NormStep>(step);
    }
    Check(fused + norms == 2, StrCat("a layer of ", Name(dtype), " ", rows, "x", heads * 64,
                                     " int8_mode ", int8_mode, " fp8_mode ", fp8_mode, " has ",
                                     fused, " norms in products and ", norms, " others"));
    return fused;
  };
  const bool has_kernels = context.compute_capability == 90;
  const bool has_float8 = context.compute_capability >= 89;
  PlanOptions separate, group;
  separate.separate_norms = true;
  group.norm_kind = NormGemmKind::kGroup;
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    for (const int64_t heads : {12, 16}) {
      for (const int64_t rows : {2048, 4096, 6144, 12288}) {
        Check(count(dtype, heads, rows, 1, 0, {}) == 2 * has_kernels, "BERT's products of INT8");
        if (has_float8) Check(count(dtype, heads, rows, 0, 1, {}) == 2 * has_kernels, "and of FP8");
        Check(count(dtype, heads, rows, 1, 0, separate) == 0, "not if nobody wants it");
        Check(count(dtype, heads, rows, 0, 0, {}) == 0, "those of 16 bits have no such kernel");
        Check(count(dtype, heads, rows, 2, 0, {}) == 0, "mode 2 rounds in between");
      }
      Check(count(dtype, heads, 1024, 1, 0, {}) == 0, "few rows are cut up otherwise");
      Check(count(dtype, heads, 1024, 1, 0, group) == 2 * has_kernels, "unless one says so");
    }
    Check(count(dtype, 8, 4096, 1, 0, {}) == 0, "512 columns have no such kernel");
  }
  Check(count(DataType::kFloat32, 12, 4096, 1, 0, {}) == 0, "nor has float32");
}

}  // namespace ft::cuda::testing
