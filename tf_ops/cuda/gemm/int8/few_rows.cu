// Products of 8 bits of few rows, where a product's time is that of waiting for its numbers.
#include <algorithm>
#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/int8/activation.cuh"
#include "tf_ops/cuda/gemm/int8/few_rows.h"
#include "tf_ops/cuda/integers.cuh"
#include "tf_ops/cuda/norm/layer_norm.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kCols = 24;      // of a block's tile
constexpr int kMaxRows = 32;   // of it
constexpr int kMaxWarps = 8;   // of a block
constexpr int kUnit = 64;      // of k: four lanes have 16 bytes each
constexpr int kWarpUnits = 2;  // that a warp has in registers

struct FewRowsParams {
  const int8_t *x, *w;
  const float *scale, *bias, *out_scale;
  void* output;
  DataType output_dtype;
  Int8Activation activation;
  int rows, n, k, units_per_part;
};

// What becomes of the sums.
enum class Result { kPartials, kNumbers, kRounded };

// Two neighbours of a row.
[[maybe_unused]] __device__ __forceinline__ void StorePair(void* output, DataType dtype, int64_t at,
                                                           float y0, float y1) {
  if (dtype == DataType::kFloat16) {
    *reinterpret_cast<uint32_t*>(static_cast<half*>(output) + at) = ToPair<half>(y0, y1);
  } else if (dtype == DataType::kBFloat16) {
    *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(output) + at) =
        ToPair<__nv_bfloat16>(y0, y1);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(output) + at) = make_float2(y0, y1);
  }
}

// The block computes y[kRows, kCols] over the part of k that blockIdx.z says, of which each warp
// has some units; their sums are added up at the end. A warp's numbers go from memory to the
// registers that tensor cores read, and nobody waits for another until the end: so four lanes have
// 16 neighbouring bytes of a row each, and which k a product takes first is the same for x and w.
// The first weights are on their way before the previous kernel ends. Requires k % 16 == 0 and
// n % 8 == 0. Rows and columns past the end are read from the last one, and not stored.
//
// kWhole: each warp has kWarpUnits units, all of them whole. Branches between the end of the
// previous kernel and the first product take longer than what they save. The launch bounds of one
// block let the compiler start all loads before the first product, which it would put between them
// to spare registers.
template <typename Q, Result kResult, int kRows, int kWarps, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps, 1) FewRowsInt8GemmKernel(const FewRowsParams p) {
#if __CUDA_ARCH__ >= 800
  using Sum = SumOf<Q>;
  constexpr int kRowTiles = kRows / 16, kColTiles = kCols / 8, kTiles = kRowTiles * kColTiles;
  constexpr int kWords = ByteOperand<Q>::kWords;
  using Quad = Piece<Sum, 4>;
  __shared__ Quad sums[kWarps][kTiles][32];  // as lanes have them
  __shared__ float scale[kCols], bias[kCols];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row0 = blockIdx.y * kRows, col0 = blockIdx.x * kCols;
  const int first_unit = blockIdx.z * p.units_per_part;
  const int num_units = min(p.units_per_part, (p.k + kUnit - 1) / kUnit - first_unit);
  const int begin = first_unit + (kWhole ? warp * kWarpUnits : num_units * warp / kWarps);
  [[maybe_unused]] const int end = first_unit + num_units * (warp + 1) / kWarps;
  const int lane_k = begin * kUnit + lane % 4 * 16;

  AllowNextKernel();
  const int8_t *x_rows[2 * kRowTiles], *w_rows[kColTiles];
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int row = min(row0 + i * 8 + lane / 4, p.rows - 1);
    x_rows[i] = p.x + static_cast<int64_t>(row) * p.k + lane_k;
  }
#pragma unroll
  for (int j = 0; j < kColTiles; ++j) {
    const int row = min(col0 + j * 8 + lane / 4, p.n - 1);
    w_rows[j] = p.w + static_cast<int64_t>(row) * p.k + lane_k;
  }
  // Unit `unit` of the warp; zeros where it ends earlier.
  const auto load = [&](const int8_t* row, int unit) {
    const int8_t* const from = row + unit * kUnit;
    if constexpr (kWhole) return *reinterpret_cast<const uint4*>(from);
    return LoadIf(begin + unit < end && unit * kUnit + lane_k < p.k, from);
  };
  uint32_t w[kWarpUnits][kColTiles][kWords];
  uint4 x[kWarpUnits][2 * kRowTiles];
  const auto load_w = [&](int first) {
    uint4 bytes[kWarpUnits][kColTiles];
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) {
#pragma unroll
      for (int j = 0; j < kColTiles; ++j) bytes[u][j] = load(w_rows[j], first + u);
    }
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) {
#pragma unroll
      for (int j = 0; j < kColTiles; ++j) ByteOperand<Q>::From(bytes[u][j], w[u][j]);
    }
  };
  const auto load_x = [&](int first) {
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) {
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) x[u][i] = load(x_rows[i], first + u);
    }
  };
  Sum acc[kRowTiles][kColTiles][4] = {};
  const auto multiply = [&] {
#pragma unroll
    for (int u = 0; u < kWarpUnits; ++u) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        uint32_t upper[kWords], lower[kWords];
        ByteOperand<Q>::From(x[u][2 * i], upper);
        ByteOperand<Q>::From(x[u][2 * i + 1], lower);
#pragma unroll
        for (int c = 0; c < kWords; c += 2) {
          const uint32_t a[4] = {upper[c], lower[c], upper[c + 1], lower[c + 1]};
#pragma unroll
          for (int j = 0; j < kColTiles; ++j) {
            ByteOperand<Q>::MultiplyAdd(acc[i][j], a, w[u][j][c], w[u][j][c + 1]);
          }
        }
      }
    }
  };
  if (kResult != Result::kPartials && thread < kCols) {
    const int column = min(col0 + thread, p.n - 1);
    scale[thread] = p.scale[column];
    bias[thread] = p.bias != nullptr ? p.bias[column] : 0.f;
  }
  const float out_scale =
      kResult == Result::kRounded && p.out_scale != nullptr ? *p.out_scale : 1.f;
  load_w(0);
  WaitForPreviousKernel();
  load_x(0);
  multiply();
  if constexpr (!kWhole) {
    for (int first = kWarpUnits; begin + first < end; first += kWarpUnits) {
      load_w(first);
      load_x(first);
      multiply();
    }
  }

#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      const Sum(&a)[4] = acc[i][j];
      sums[warp][i * kColTiles + j][lane] = {a[0], a[1], a[2], a[3]};
    }
  }
  __syncthreads();
  static_assert(kTiles <= kWarps, "each warp has a tile of the sums, or none");
  const int column = col0 + warp % kColTiles * 8 + lane % 4 * 2;
  if (warp >= kTiles || column >= p.n) return;
  Sum sum[4] = {};
#pragma unroll
  for (int part = 0; part < kWarps; ++part) {
    const Quad quad = sums[part][warp][lane];
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += quad.v[e];
  }
  float y[4];
  if constexpr (kResult != Result::kPartials) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      y[e] = fmaf(static_cast<float>(sum[e]), scale[column - col0 + e % 2],
                  bias[column - col0 + e % 2]);
    }
  }
  if constexpr (kResult == Result::kRounded) {
    ActivateIntegers<4>(p.activation, y);
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] *= out_scale;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + warp / kColTiles * 16 + lane / 4 + h * 8;
    if (row >= p.rows) continue;
    if constexpr (kResult == Result::kPartials) {
      const int64_t at = (static_cast<int64_t>(blockIdx.z) * p.rows + row) * p.n + column;
      *reinterpret_cast<Piece<Sum, 2>*>(static_cast<Sum*>(p.output) + at) = {sum[2 * h],
                                                                             sum[2 * h + 1]};
    } else if constexpr (kResult == Result::kNumbers) {
      StorePair(p.output, p.output_dtype, static_cast<int64_t>(row) * p.n + column, y[2 * h],
                y[2 * h + 1]);
    } else {
      *reinterpret_cast<uint16_t*>(static_cast<int8_t*>(p.output) +
                                   static_cast<int64_t>(row) * p.n + column) =
          PackPair(std::is_same_v<Q, Float8>, y[2 * h], y[2 * h + 1]);
    }
  }
#endif
}

int64_t Units(int64_t k) { return (k + kUnit - 1) / kUnit; }

template <typename Q, Result kResult, int kRows>
Status LaunchTile(const Int8GemmArgs& args, const LaunchContext& context) {
  const int64_t parts = std::max(1, args.num_partials);
  const int64_t units_per_part = (Units(args.k) + parts - 1) / parts;
  const Grid grid = {(args.n + kCols - 1) / kCols, (args.rows + kRows - 1) / kRows, parts};
  const FewRowsParams params = {static_cast<const int8_t*>(args.x),
                                static_cast<const int8_t*>(args.w),
                                args.scale,
                                args.bias,
                                args.out_scale,
                                args.output,
                                args.output_dtype,
                                args.activation,
                                static_cast<int>(args.rows),
                                static_cast<int>(args.n),
                                static_cast<int>(args.k),
                                static_cast<int>(units_per_part)};
  const auto launch = [&](auto warps, auto whole) {
    return Launch(FewRowsInt8GemmKernel<Q, kResult, kRows, warps, whole>, grid, 32 * warps, 0,
                  context, params);
  };
  constexpr std::integral_constant<int, 6> kSix;  // hidden size 768
  constexpr std::integral_constant<int, kMaxWarps> kEight;
  const int64_t bytes = parts * units_per_part * kUnit;
  if (args.k == bytes && units_per_part == kSix * kWarpUnits) {
    return launch(kSix, std::true_type());
  }
  if (args.k == bytes && units_per_part == kEight * kWarpUnits) {
    return launch(kEight, std::true_type());
  }
  return launch(kEight, std::false_type());
}

template <typename Q, Result kResult>
Status LaunchResult(const Int8GemmArgs& args, const LaunchContext& context) {
  if (args.rows <= 16) return LaunchTile<Q, kResult, 16>(args, context);
  return LaunchTile<Q, kResult, kMaxRows>(args, context);
}

template <typename Q>
Status LaunchTyped(const Int8GemmArgs& args, const LaunchContext& context) {
  if (args.num_partials > 0) return LaunchResult<Q, Result::kPartials>(args, context);
  if (args.output_dtype == args.input_dtype) {
    return LaunchResult<Q, Result::kRounded>(args, context);
  }
  return LaunchResult<Q, Result::kNumbers>(args, context);
}

}  // namespace

bool FewRowsInt8GemmSupported(const Int8GemmArgs& args, const LaunchContext& context) {
  return context.compute_capability >= 80 && args.k % 16 == 0 && args.n % 8 == 0 &&
         args.rows <= 65535;
}

int FewRowsInt8GemmPartials(int64_t rows, int64_t n, int64_t k, const LaunchContext& context) {
  constexpr int64_t kMinUnits = 6;  // a part of less is not worth its sums
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows * ((n + kCols - 1) / kCols);
  const int64_t units = Units(k), at_once = kMaxWarps * kWarpUnits;
  // No warp has more than it holds at once; then as many as fill the device.
  int parts =
      static_cast<int>(std::min<int64_t>((units + at_once - 1) / at_once, kMaxNormPartials));
  for (int more = parts + 1; more <= kMaxNormPartials; ++more) {
    if (units % more == 0 && units / more >= kMinUnits &&
        tiles * more <= context.num_multiprocessors) {
      parts = more;
    }
  }
  return parts;
}

Status LaunchFewRowsInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context) {
  return args.input_dtype == DataType::kFloat8 ? LaunchTyped<Float8>(args, context)
                                               : LaunchTyped<int8_t>(args, context);
}

}  // namespace cuda
}  // namespace ft
