// Products of float16 and bfloat16 on CUDA (tf_ops/cuda/gemm/half/half_gemm.h) against float64.
#pragma once

#include <optional>
#include <tuple>

#include "tests/cuda_support.h"
#include "tf_ops/cuda/gemm/half/half_gemm.h"

namespace ft::cuda::testing {

// The epilogues that kernels of CUTLASS have.
struct HalfEpilogue {
  const char* name;
  GemmEpilogue epilogue;
  bool residual;
};
inline constexpr HalfEpilogue kHalfEpilogues[] = {{"bias", GemmEpilogue::kBias, false},
                                                  {"gelu", GemmEpilogue::kBiasGelu, false},
                                                  {"gelu erf", GemmEpilogue::kBiasGeluErf, false},
                                                  {"residual", GemmEpilogue::kBias, true}};

// The activation of an epilogue that has one; null: none.
inline std::optional<Activation> ActivationOf(const HalfEpilogue& epilogue) {
  if (epilogue.epilogue == GemmEpilogue::kBiasGelu) return Activation::kGeluTanh;
  if (epilogue.epilogue == GemmEpilogue::kBiasGeluErf) return Activation::kGeluErf;
  return std::nullopt;
}

inline std::string DescribeHalf(const GemmShape& shape, const HalfEpilogue& epilogue) {
  return StrCat(Name(shape.dtype), " ", shape.rows, "x", shape.k, "x", shape.n, " ", epilogue.name);
}

// Every kernel but cuBLASLt's that takes the sizes; returns how many did.
inline int TestHalfGemm(DataType dtype, int64_t rows, int64_t n, int64_t k, Gemm* gemm,
                        const LaunchContext& context) {
  constexpr int64_t kGuardRows = 64;
  Doubles x = Random(rows * k, 1.0), w = Random(k * n, 1.5 / std::sqrt(static_cast<double>(k))),
          bias = Random(n, 1.0), residual = Random(rows * n, 1.0), transposed(n * k);
  for (int64_t i = 0; i < k * n; ++i) transposed[i % n * k + i / n] = w[i];
  const Device device_x(&x, dtype), device_w(&transposed, dtype), device_bias(&bias, dtype),
      device_residual(&residual, dtype), workspace(kGemmWorkspaceBytes);
  for (int64_t i = 0; i < k * n; ++i) w[i] = transposed[i % n * k + i / n];
  const Doubles sums = reference::Dense(x, w, bias, k, n);
  int tested = 0;
  for (const HalfEpilogue& epilogue : kHalfEpilogues) {
    for (int i = 0; i < kNumHalfGemmKinds; ++i) {
      const auto kind = static_cast<HalfGemmKind>(i);
      GemmArgs args;
      args.shape = {dtype, false, rows, n, k, epilogue.epilogue, epilogue.residual};
      if (kind == HalfGemmKind::kCublasLt || !HalfGemmSupported(args.shape, kind, context))
        continue;
      ++tested;
      Device output((rows + kGuardRows) * n * SizeOf(dtype));
      args.x = device_x.data();
      args.w = device_w.data();
      args.bias = device_bias.data();
      args.residual = device_residual.data();
      args.output = output.data();
      args.workspace = workspace.data();
      const std::string name = StrCat(Name(kind), " ", DescribeHalf(args.shape, epilogue));
      MustBeOk(RunHalfGemm(args, kind, gemm, context), name);
      MustBeOk(cudaDeviceSynchronize(), name.c_str());
      const Doubles got = output.Read((rows + kGuardRows) * n, dtype);
      // Half a unit of the type, what float32 sums of k numbers lose, and what the GELU says of
      // itself; below float16's normal numbers half of its smallest.
      const double half_unit = dtype == DataType::kFloat16 ? std::exp2(-11) : std::exp2(-8);
      double worst = 0;
      for (int64_t e = 0; e < rows * n; ++e) {
        double want = sums[e], bound = 3e-6 * std::sqrt(static_cast<double>(k)) + std::exp2(-24);
        if (epilogue.residual) want += residual[e];
        if (const auto activation = ActivationOf(epilogue)) {
          bound += std::abs(want) * kHalfGeluError;
          want = reference::Activate(want, *activation);
        }
        bound += half_unit * std::abs(want) * 1.001;
        const double error = std::abs(got[e] - want) / bound;
        if (!(error <= worst)) worst = error;  // NaN stays
      }
      const bool untouched =
          std::all_of(got.begin() + rows * n, got.end(), [](double v) { return std::isnan(v); });
      Check(worst <= 1 && untouched, StrCat(name, ": of the allowed error ", worst,
                                            untouched ? "" : " WRITES BEHIND THE LAST ROW"));
    }
  }
  return tested;
}

inline bool HasHalfKernels(const LaunchContext& context) {
  const GemmShape shape = {DataType::kFloat16, false, 64, 64, 64, GemmEpilogue::kBias, false};
  for (int i = 0; i < kNumHalfGemmKinds; ++i) {
    const auto kind = static_cast<HalfGemmKind>(i);
    if (kind != HalfGemmKind::kCublasLt && HalfGemmSupported(shape, kind, context)) return true;
  }
  return false;
}

// Rows around one to three tiles, and sizes that end within a tile.
inline void TestHalfGemms() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  Gemm gemm;
  int tested = 0;
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    for (auto [n, k] : std::vector<std::pair<int64_t, int64_t>>{
             {8, 8}, {64, 64}, {72, 200}, {200, 72}, {392, 136}, {256, 768}, {104, 1544}}) {
      for (const int64_t rows :
           {1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 383, 384, 385}) {
        tested += TestHalfGemm(dtype, rows, n, k, &gemm, context);
      }
    }
    // A model's, more tiles than multiprocessors, and sizes that tensor copies do not take.
    for (auto [rows, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{300, 768, 3072},
                                                                                {1024, 768, 3072},
                                                                                {130, 2304, 768},
                                                                                {9000, 768, 64},
                                                                                {3100, 2304, 72}}) {
      tested += TestHalfGemm(dtype, rows, n, k, &gemm, context);
    }
    for (auto [n, k] : std::vector<std::pair<int64_t, int64_t>>{{68, 72}, {72, 68}}) {
      const GemmShape shape = {dtype, false, 33, n, k, GemmEpilogue::kBias, false};
      Check(TestHalfGemm(dtype, 33, n, k, &gemm, context) == 0 &&
                SelectHalfGemm(shape, context) == HalfGemmKind::kCublasLt,
            StrCat(Name(dtype), " sizes that are no multiple of 8 go to cuBLASLt"));
    }
  }
  Check(tested > 0 || !HasHalfKernels(context), StrCat("kernels of CUTLASS tested ", tested));
}

// NaN and infinity in a row, a weight, a bias and a residual come out where IEEE arithmetic has
// them.
inline void TestHalfNonFinite() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  Gemm gemm;
  constexpr int64_t kRows = 70, kN = 72, kK = 64;
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    for (const HalfEpilogue& epilogue : kHalfEpilogues) {
      for (int i = 0; i < kNumHalfGemmKinds; ++i) {
        const auto kind = static_cast<HalfGemmKind>(i);
        GemmArgs args;
        args.shape = {dtype, false, kRows, kN, kK, epilogue.epilogue, epilogue.residual};
        if (kind == HalfGemmKind::kCublasLt || !HalfGemmSupported(args.shape, kind, context)) {
          continue;
        }
        int wrong = 0, special = 0;
        for (int where = 0; where < 4; ++where) {
          for (const double value : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
            Doubles x = Random(kRows * kK, 1.0), w = Random(kK * kN, 0.2), bias = Random(kN, 1.0),
                    residual = Random(kRows * kN, 1.0), transposed(kN * kK);
            if (where == 0) x[5 * kK + 3] = value;
            if (where == 1) w[7 * kN + 2] = value;
            if (where == 2) bias[9] = value;
            if (where == 3) residual[11] = value;
            for (int64_t e = 0; e < kK * kN; ++e) transposed[e % kN * kK + e / kN] = w[e];
            const Device device_x(&x, dtype), device_w(&transposed, dtype),
                device_bias(&bias, dtype), device_residual(&residual, dtype);
            Device output(kRows * kN * SizeOf(dtype));
            args.x = device_x.data();
            args.w = device_w.data();
            args.bias = device_bias.data();
            args.residual = device_residual.data();
            args.output = output.data();
            MustBeOk(RunHalfGemm(args, kind, &gemm, context), "product");
            MustBeOk(cudaDeviceSynchronize(), "product");
            const Doubles got = output.Read(kRows * kN, dtype);
            Doubles want = reference::Dense(x, w, bias, kK, kN);
            const auto sort = [](double v) {
              return std::isnan(v) ? 3 : std::isinf(v) ? (v > 0 ? 2 : 1) : 0;
            };
            for (int64_t e = 0; e < kRows * kN; ++e) {
              if (epilogue.residual) want[e] += residual[e];
              if (const auto activation = ActivationOf(epilogue)) {
                want[e] = reference::Activate(want[e], *activation);
              }
              special += sort(want[e]) != 0;
              wrong += sort(got[e]) != sort(want[e]);
            }
          }
        }
        Check(wrong == 0 && special > 0, StrCat("non-finite ", Name(kind), " ", Name(dtype), " ",
                                                epilogue.name, ": ", wrong, " wrong"));
      }
    }
  }
}

// Each kernel once, for tools that follow every access to memory.
inline void TestEachHalfKernel() {
  LaunchContext context;
  MustBeOk(GetLaunchContext({}, &context), "context");
  Gemm gemm;
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    TestHalfGemm(dtype, 140, 200, 136, &gemm, context);
  }
}

// What the rule chooses on an H100, by sizes alone (benchmarks/gpu_profile.md).
inline void TestHalfChoices() {
  LaunchContext h100;
  h100.compute_capability = 90;
  h100.num_multiprocessors = 132;
  const auto choose = [&](int64_t rows, int64_t n, int64_t k, const HalfEpilogue& epilogue) {
    return SelectHalfGemm(
        {DataType::kFloat16, false, rows, n, k, epilogue.epilogue, epilogue.residual}, h100);
  };
  const auto& [bias, gelu, gelu_erf, residual] = kHalfEpilogues;
  if (!HalfGemmSupported({DataType::kFloat16, false, 64, 64, 64, GemmEpilogue::kBias, false},
                         HalfGemmKind::kHopper64, h100)) {
    Check(choose(64, 64, 64, bias) == HalfGemmKind::kCublasLt, "built without CUTLASS: cuBLASLt");
    return;
  }
  for (auto [rows, n, k, epilogue, kind] :
       std::vector<std::tuple<int64_t, int64_t, int64_t, HalfEpilogue, HalfGemmKind>>{
           {64, 2304, 768, bias, HalfGemmKind::kHopper64},
           {256, 3072, 768, gelu, HalfGemmKind::kHopper64x96},
           {1024, 3072, 768, gelu, HalfGemmKind::kHopperOne128x192},
           {1024, 768, 768, residual, HalfGemmKind::kHopper64x96},
           {128, 768, 768, residual, HalfGemmKind::kCluster64x64Parts4},
           {128, 768, 3072, residual, HalfGemmKind::kCluster64x64Parts4},
           {256, 768, 768, residual, HalfGemmKind::kHopper64},
           {256, 768, 3072, residual, HalfGemmKind::kCluster64x64Parts2},
           {512, 768, 3072, residual, HalfGemmKind::kHopper64},
           {512, 3072, 768, gelu, HalfGemmKind::kCluster128x96Pair},
           {512, 3072, 768, gelu_erf, HalfGemmKind::kCluster128x96Pair},
           {512, 2304, 768, bias, HalfGemmKind::kCluster128x96Pair},
           {768, 2304, 768, bias, HalfGemmKind::kCluster128x144Pair},
           {1024, 2304, 768, bias, HalfGemmKind::kCluster128x144Pair},
           {2048, 2304, 768, bias, HalfGemmKind::kCublasLt},
           {1024, 768, 3072, residual, HalfGemmKind::kCluster128x96Parts2},
           {1024, 1024, 4096, residual, HalfGemmKind::kCublasLt},
           {2048, 768, 768, residual, HalfGemmKind::kCluster128x96Pair},
           {2048, 768, 3072, residual, HalfGemmKind::kCluster128x96Pair},
           {6144, 2304, 768, bias, HalfGemmKind::kHopper128},
           {6144, 3072, 768, gelu, HalfGemmKind::kHopper128x192},
           {6144, 3072, 768, gelu_erf, HalfGemmKind::kHopper128x192},
           // cuBLASLt would be chosen, if it had this GELU.
           {1536, 3072, 768, gelu, HalfGemmKind::kCublasLt},
           {1536, 3072, 768, gelu_erf, HalfGemmKind::kHopper128x192},
           {6144, 768, 3072, residual, HalfGemmKind::kHopper64x192},
           {12288, 2304, 768, bias, HalfGemmKind::kHopper128x192},
           {12288, 768, 3072, residual, HalfGemmKind::kHopper128x192}}) {
    const HalfGemmKind chosen = choose(rows, n, k, epilogue);
    Check(chosen == kind, StrCat("float16 product ", rows, "x", k, "x", n, " ", epilogue.name, ": ",
                                 Name(chosen), ", expected ", Name(kind)));
  }
  // What no kernel of CUTLASS computes.
  const HalfEpilogue relu = {"relu", GemmEpilogue::kBiasRelu, false},
                     none = {"none", GemmEpilogue::kNone, false};
  for (const HalfEpilogue& epilogue : {relu, none}) {
    Check(choose(12288, 3072, 768, epilogue) == HalfGemmKind::kCublasLt,
          StrCat("float16 with epilogue ", epilogue.name, " goes to cuBLASLt"));
  }
  Check(SelectHalfGemm({DataType::kFloat32, false, 12288, 3072, 768, GemmEpilogue::kBias, false},
                       h100) == HalfGemmKind::kCublasLt,
        "float32 goes to cuBLASLt");
  LaunchContext a100 = h100;
  a100.compute_capability = 80;
  Check(SelectHalfGemm({DataType::kFloat16, false, 12288, 3072, 768, GemmEpilogue::kBias, false},
                       a100) == HalfGemmKind::kCublasLt,
        "compute capability 8.0 goes to cuBLASLt");
}

}  // namespace ft::cuda::testing
