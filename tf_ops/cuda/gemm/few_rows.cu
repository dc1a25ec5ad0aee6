// y = x w^T for few rows, where a GEMM's time is that of fetching the weights.
#include <algorithm>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/few_rows.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kStep = 128;                    // of k in one stage
[[maybe_unused]] constexpr int kChunks = 16;  // 16-byte chunks of a stage's row
constexpr int kThreads = 128;                 // 4 warps

// The block computes y[kRows, kCols] over the k range of blockIdx.z. kWarpCols warps split the
// columns, 4 / kWarpCols split the k of each stage and are added up at the end. Stages go round in
// shared memory; the first kStages stages of w are on their way before the previous kernel ends.
// Rows of a stage are 256 bytes; chunk c of row r lies at c ^ (r % 8), so that ldmatrix meets no
// bank conflict. Accumulates in float32. Requires k % 8 == 0, n % 2 == 0.
template <typename T, int kRows, int kCols, int kWarpCols, int kStages>
__global__ void __launch_bounds__(kThreads)
    FewRowsGemmKernel(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
                      T* __restrict__ output, float* __restrict__ partials, int rows, int n, int k,
                      int k_per_split, int activation) {
#if __CUDA_ARCH__ >= 800
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
#pragma unroll
    for (int kk = 0; kk < kStep / 16 / kWarpsK; ++kk) {
      const int chunk = (kk * kWarpsK + warp_k) * 2;
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int r = i * 16 + lane % 16;
        LoadMatrices(a[i],
                     SharedAddress(stage_x + r * kStep + (((chunk + lane / 16) ^ (r & 7)) * 8)));
      }
#pragma unroll
      for (int j = 0; j < kColTiles; j += 2) {
        uint32_t b[4];
        const int r = warp_col + j * 8 + lane % 8 + lane / 16 * 8;
        LoadMatrices(b,
                     SharedAddress(stage_w + r * kStep + (((chunk + lane / 8 % 2) ^ (r & 7)) * 8)));
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          MultiplyAdd<T>(acc[i][j], a[i], b[0], b[1]);
          MultiplyAdd<T>(acc[i][j + 1], a[i], b[2], b[3]);
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
    const int64_t at = static_cast<int64_t>(row0 + r) * n + col0 + c;
    if (partials != nullptr) {
      *reinterpret_cast<float2*>(partials + static_cast<int64_t>(blockIdx.z) * rows * n + at) = y;
      continue;
    }
    if (bias != nullptr) {
      y.x += ToFloat(bias[col0 + c]);
      y.y += ToFloat(bias[col0 + c + 1]);
    }
    if (activation == static_cast<int>(Activation::kGeluTanh)) {
      y.x = Activate<Activation::kGeluTanh>(y.x);
      y.y = Activate<Activation::kGeluTanh>(y.y);
    } else if (activation == static_cast<int>(Activation::kGeluErf)) {
      y.x = Activate<Activation::kGeluErf>(y.x);
      y.y = Activate<Activation::kGeluErf>(y.y);
    } else if (activation == static_cast<int>(Activation::kRelu)) {
      y.x = Activate<Activation::kRelu>(y.x);
      y.y = Activate<Activation::kRelu>(y.y);
    }
    *reinterpret_cast<uint32_t*>(output + at) = ToPair<T>(y.x, y.y);
  }
#endif
}

// Tile sizes by rows: {rows, columns} of a block.
void TileSize(int64_t rows, int* tile_rows, int* tile_cols) {
  *tile_rows = rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  *tile_cols = rows <= 64 ? 32 : 64;
}

template <typename T, int kRows, int kCols, int kWarpCols, int kStages>
Status LaunchTile(const FewRowsGemmArgs& args, const LaunchContext& context) {
  const int64_t k_per_split =
      AlignUp((args.k + args.num_splits - 1) / args.num_splits, static_cast<int64_t>(kStep));
  const Grid grid = {(args.n + kCols - 1) / kCols, (args.rows + kRows - 1) / kRows,
                     args.num_splits};
  const int activation = args.has_activation ? static_cast<int>(args.activation) : -1;
  return Launch(FewRowsGemmKernel<T, kRows, kCols, kWarpCols, kStages>, grid, kThreads,
                int64_t{kStages} * (kRows + kCols) * kStep * sizeof(T), context,
                static_cast<const T*>(args.x), static_cast<const T*>(args.w),
                static_cast<const T*>(args.bias), static_cast<T*>(args.output), args.partials,
                static_cast<int>(args.rows), static_cast<int>(args.n), static_cast<int>(args.k),
                static_cast<int>(k_per_split), activation);
}

template <typename T>
Status LaunchTyped(const FewRowsGemmArgs& args, const LaunchContext& context) {
  int tile_rows, tile_cols;
  TileSize(args.rows, &tile_rows, &tile_cols);
  if (tile_rows == 16) return LaunchTile<T, 16, 32, 1, 6>(args, context);
  if (tile_rows == 32) return LaunchTile<T, 32, 32, 1, 6>(args, context);
  if (tile_cols == 32) return LaunchTile<T, 64, 32, 1, 4>(args, context);
  return LaunchTile<T, 64, 64, 2, 3>(args, context);
}

}  // namespace

bool FewRowsGemmSupported(const FewRowsGemmArgs& args, const LaunchContext& context) {
  return context.compute_capability >= 80 && SizeOf(args.dtype) == 2 && args.k % 8 == 0 &&
         args.n % 8 == 0 && args.rows <= 65535 && context.max_shared_bytes >= 98304;
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
  if (args.dtype == DataType::kFloat16) return LaunchTyped<half>(args, context);
  if (args.dtype == DataType::kBFloat16) return LaunchTyped<__nv_bfloat16>(args, context);
  return Unimplemented("small GEMM for ", Name(args.dtype), "; there are float16 and bfloat16");
}

}  // namespace cuda
}  // namespace ft
