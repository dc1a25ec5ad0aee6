// y = x w^T for few rows, where a GEMM's time is that of fetching the weights.
#include <algorithm>
#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/few_rows.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kStep = 128;                    // of k in one stage
[[maybe_unused]] constexpr int kChunks = 16;  // 16-byte chunks of a stage's row
constexpr int kThreads = 128;                 // 4 warps

struct FewRowsParams {
  const void *x, *w, *bias;
  const float *x_scale, *w_scale;
  void* output;
  int64_t output_pitch;
  float* partials;
  int rows, n, k, activation;
};

// The block computes y[kRows, kCols] over the k range of blockIdx.z. kWarpCols warps split the
// columns, 4 / kWarpCols split the k of each stage and are added up at the end. Stages go round in
// shared memory; the first kStages stages of w are on their way before the previous kernel ends.
// Rows of a stage are 256 bytes; chunk c of row r lies at c ^ (r % 8), so that ldmatrix meets no
// bank conflict. Accumulates in float32. Requires k % 8 == 0, n % 2 == 0.
//
// kSplit: x and w are split rows, k counts their halves, and what each 16 numbers give is added to
// the sums by float32 arithmetic: see gemm/split/split_gemm.h.
template <typename T, bool kSplit, int kRows, int kCols, int kWarpCols, int kStages>
__global__ void __launch_bounds__(kThreads)
    FewRowsGemmKernel(const FewRowsParams p, int k_per_split) {
#if __CUDA_ARCH__ >= 800
  using Output = std::conditional_t<kSplit, float, T>;
  const T* const __restrict__ x = static_cast<const T*>(p.x);
  const T* const __restrict__ w = static_cast<const T*>(p.w);
  const Output* const __restrict__ bias = static_cast<const Output*>(p.bias);
  const int rows = p.rows, n = p.n, k = p.k;
  constexpr int kWarpsK = 4 / kWarpCols;
  constexpr int kTileCols = kCols / kWarpCols;  // of a warp
  constexpr int kRowTiles = kRows / 16, kColTiles = kTileCols / 8;
  constexpr int kStageElems = (kRows + kCols) * kStep;
  extern __shared__ __align__(128) unsigned char shared[];
  T* stages = reinterpret_cast<T*>(shared);

  const int row0 = blockIdx.y * kRows, col0 = blockIdx.x * kCols;
  const int k_begin = blockIdx.z * k_per_split;
  const int k_end = min(k, k_begin + k_per_split);
  const int num_steps = (k_end - k_begin + kStep - 1) / kStep;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  const auto load = [&](const T* source, int first, int limit, int count, T* target, int step) {
    for (int i = thread; i < count * kChunks; i += kThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const int column = k_begin + step * kStep + c * 8;
      const bool valid = first + r < limit && column < k_end;
      CopyAsync16(target + r * kStep + ((c ^ (r & 7)) * 8),
                  valid ? source + static_cast<int64_t>(first + r) * k + column : source, valid);
    }
  };
  const auto load_x = [&](int step) {
    load(x, row0, rows, kRows, stages + step % kStages * kStageElems, step);
  };
  const auto load_w = [&](int step) {
    load(w, col0, n, kCols, stages + step % kStages * kStageElems + kRows * kStep, step);
  };

  AllowNextKernel();
  for (int s = 0; s < kStages && s < num_steps; ++s) load_w(s);
  WaitForPreviousKernel();
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (s < num_steps) load_x(s);
    CommitCopies();
  }

  float acc[kRowTiles][kColTiles][4] = {};
  const int warp_col = warp % kWarpCols * kTileCols, warp_k = warp / kWarpCols;
  for (int step = 0; step < num_steps; ++step) {
    WaitCopies<kStages - 1>();
    __syncthreads();
    const T* stage_x = stages + step % kStages * kStageElems;
    const T* stage_w = stage_x + kRows * kStep;
    // `chunk` is the first of two that have 16 numbers.
    const auto load_x_matrices = [&](int i, int chunk, uint32_t(&a)[4]) {
      const int r = i * 16 + lane % 16;
      LoadMatrices(a, SharedAddress(stage_x + r * kStep + (((chunk + lane / 16) ^ (r & 7)) * 8)));
    };
    const auto load_w_matrices = [&](int j, int chunk, uint32_t(&b)[4]) {
      const int r = warp_col + j * 8 + lane % 8 + lane / 16 * 8;
      LoadMatrices(b,
                   SharedAddress(stage_w + r * kStep + (((chunk + lane / 8 % 2) ^ (r & 7)) * 8)));
    };
    if constexpr (kSplit) {
      constexpr int kLow = kSplitGroup / 8;  // chunks from high halves to low ones
#pragma unroll
      for (int kk = 0; kk < kStep / 32 / kWarpsK; ++kk) {
        const int block = kk * kWarpsK + warp_k;
        const int chunk = block / 2 * (2 * kLow) + block % 2 * 2;
        uint32_t high[kRowTiles][4], low[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          load_x_matrices(i, chunk, high[i]);
          load_x_matrices(i, chunk + kLow, low[i]);
        }
#pragma unroll
        for (int j = 0; j < kColTiles; j += 2) {
          uint32_t b_high[4], b_low[4];
          load_w_matrices(j, chunk, b_high);
          load_w_matrices(j, chunk + kLow, b_low);
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float part[4] = {};
              MultiplyAdd<T>(part, low[i], b_high[2 * h], b_high[2 * h + 1]);
              MultiplyAdd<T>(part, high[i], b_low[2 * h], b_low[2 * h + 1]);
              MultiplyAdd<T>(part, high[i], b_high[2 * h], b_high[2 * h + 1]);
#pragma unroll
              for (int e = 0; e < 4; ++e) acc[i][j + h][e] += part[e];
            }
          }
        }
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < kStep / 16 / kWarpsK; ++kk) {
        const int chunk = (kk * kWarpsK + warp_k) * 2;
        uint32_t a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) load_x_matrices(i, chunk, a[i]);
#pragma unroll
        for (int j = 0; j < kColTiles; j += 2) {
          uint32_t b[4];
          load_w_matrices(j, chunk, b);
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            MultiplyAdd<T>(acc[i][j], a[i], b[0], b[1]);
            MultiplyAdd<T>(acc[i][j + 1], a[i], b[2], b[3]);
          }
        }
      }
    }
    if (num_steps > kStages) {
      __syncthreads();
      if (step + kStages < num_steps) {
        load_w(step + kStages);
        load_x(step + kStages);
      }
    }
    CommitCopies();
  }

  // Add up the warps that share columns, in shared memory, as float32 [kWarpsK][kRows][kCols + 8].
  constexpr int kPitch = kCols + 8;
  static_assert(kWarpsK * kRows * kPitch * 4 <= kStages * kStageElems * 2, "room for the sums");
  WaitCopies<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      float* to =
          sums + (warp_k * kRows + i * 16 + lane / 4) * kPitch + warp_col + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  }
  __syncthreads();
  for (int i = thread; i < kRows * kCols / 2; i += kThreads) {
    const int r = i / (kCols / 2), c = i % (kCols / 2) * 2;
    if (row0 + r >= rows || col0 + c >= n) continue;
    float2 y = make_float2(0.f, 0.f);
#pragma unroll
    for (int part = 0; part < kWarpsK; ++part) {
      const float2 f = *reinterpret_cast<const float2*>(sums + (part * kRows + r) * kPitch + c);
      y.x += f.x;
      y.y += f.y;
    }
    if constexpr (kSplit) {
      const float of_row = p.x_scale[row0 + r];
      y.x = y.x * p.w_scale[col0 + c] * of_row;
      y.y = y.y * p.w_scale[col0 + c + 1] * of_row;
    }
    if (p.partials != nullptr) {
      *reinterpret_cast<float2*>(
          p.partials + (static_cast<int64_t>(blockIdx.z) * rows + row0 + r) * n + col0 + c) = y;
      continue;
    }
    if (bias != nullptr) {
      y.x += ToFloat(bias[col0 + c]);
      y.y += ToFloat(bias[col0 + c + 1]);
    }
    if (p.activation == static_cast<int>(Activation::kGeluTanh)) {
      y.x = Activate<Activation::kGeluTanh>(y.x);
      y.y = Activate<Activation::kGeluTanh>(y.y);
    } else if (p.activation == static_cast<int>(Activation::kGeluErf)) {
      y.x = Activate<Activation::kGeluErf>(y.x);
      y.y = Activate<Activation::kGeluErf>(y.y);
    } else if (p.activation == static_cast<int>(Activation::kRelu)) {
      y.x = Activate<Activation::kRelu>(y.x);
      y.y = Activate<Activation::kRelu>(y.y);
    }
    Output* const to = static_cast<Output*>(p.output) + (row0 + r) * p.output_pitch + col0 + c;
    if constexpr (kSplit) {
      *reinterpret_cast<float2*>(to) = y;
    } else {
      *reinterpret_cast<uint32_t*>(to) = ToPair<T>(y.x, y.y);
    }
  }
#endif
}

// Tile sizes by rows: {rows, columns} of a block.
void TileSize(int64_t rows, int* tile_rows, int* tile_cols) {
  *tile_rows = rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  *tile_cols = rows <= 64 ? 32 : 64;
}

// Elements of T in a row of x or w.
int64_t RowElements(DataType dtype, int64_t k) {
  return dtype == DataType::kFloat32 ? 2 * SplitPitch(k) : k;
}

template <typename T, bool kSplit, int kRows, int kCols, int kWarpCols, int kStages>
Status LaunchTile(const FewRowsGemmArgs& args, const LaunchContext& context) {
  const int64_t k = RowElements(args.dtype, args.k);
  const int64_t k_per_split =
      AlignUp((k + args.num_splits - 1) / args.num_splits, static_cast<int64_t>(kStep));
  const Grid grid = {(args.n + kCols - 1) / kCols, (args.rows + kRows - 1) / kRows,
                     args.num_splits};
  const FewRowsParams params = {args.x,
                                args.w,
                                args.bias,
                                args.x_scale,
                                args.w_scale,
                                args.output,
                                args.output_pitch > 0 ? args.output_pitch : args.n,
                                args.partials,
                                static_cast<int>(args.rows),
                                static_cast<int>(args.n),
                                static_cast<int>(k),
                                args.has_activation ? static_cast<int>(args.activation) : -1};
  return Launch(FewRowsGemmKernel<T, kSplit, kRows, kCols, kWarpCols, kStages>, grid, kThreads,
                int64_t{kStages} * (kRows + kCols) * kStep * sizeof(T), context, params,
                static_cast<int>(k_per_split));
}

template <typename T, bool kSplit>
Status LaunchTyped(const FewRowsGemmArgs& args, const LaunchContext& context) {
  int tile_rows, tile_cols;
  TileSize(args.rows, &tile_rows, &tile_cols);
  if (tile_rows == 16) return LaunchTile<T, kSplit, 16, 32, 1, 6>(args, context);
  if (tile_rows == 32) return LaunchTile<T, kSplit, 32, 32, 1, 6>(args, context);
  if (tile_cols == 32) return LaunchTile<T, kSplit, 64, 32, 1, 4>(args, context);
  return LaunchTile<T, kSplit, 64, 64, 2, 3>(args, context);
}

}  // namespace

bool FewRowsGemmSupported(const FewRowsGemmArgs& args, const LaunchContext& context) {
  // Split rows have whole groups.
  const bool whole_chunks = args.dtype == DataType::kFloat32 || args.k % 8 == 0;
  return context.compute_capability >= 80 && whole_chunks && args.n % 8 == 0 &&
         args.rows <= 65535 && context.max_shared_bytes >= 98304;
}

int FewRowsGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context) {
  int tile_rows, tile_cols;
  TileSize(rows, &tile_rows, &tile_cols);
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows * ((n + tile_cols - 1) / tile_cols);
  const int64_t wanted = std::max<int64_t>(1, context.num_multiprocessors * 5 / 4 / tiles);
  // A split of less than two steps is not worth its partial sums.
  return static_cast<int>(
      std::min<int64_t>({wanted, std::max<int64_t>(1, k / (2 * kStep)), int64_t{8}}));
}

Status LaunchFewRowsGemm(const FewRowsGemmArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  switch (args.dtype) {
    case DataType::kFloat32:
      return LaunchTyped<half, true>(args, context);
    case DataType::kFloat16:
      return LaunchTyped<half, false>(args, context);
    case DataType::kBFloat16:
      return LaunchTyped<__nv_bfloat16, false>(args, context);
    default:
      return Unimplemented("a product of few rows in ", Name(args.dtype),
                           "; there are float32, float16 and bfloat16");
  }
}

}  // namespace cuda
}  // namespace ft
