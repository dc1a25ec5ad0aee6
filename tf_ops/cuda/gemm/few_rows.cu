// y = x w^T for few rows, where a GEMM's time is that of fetching the weights.
#include <algorithm>
#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/few_rows.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"
#include "tf_ops/cuda/norm/layer_norm.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kCols = 32;  // of a block's tile

struct FewRowsParams {
  const void *x, *w, *bias;
  const float *x_scale, *w_scale;
  void* output;
  int64_t output_pitch;
  float* partials;
  int rows, n, k, activation;
};

// One stage of a warp in shared memory: kRows rows of x and kCols rows of w, kStep numbers of each.
// Chunks of 16 bytes are put where ldmatrix meets no bank conflict.
template <bool kSplit, int kRows, int kStages>
struct FewRowsTile {
  static constexpr int kStep = kSplit ? 2 * kSplitGroup : 32;
  static constexpr int kStageElems = (kRows + kCols) * kStep;
  static constexpr int kWarpElems = kStages * kStageElems;
  static constexpr int64_t kBytes = int64_t{kWarps} * kWarpElems * 2;
  static constexpr int kSumPitch = kCols + 8;
  static_assert(kRows * kSumPitch * 4 <= kWarpElems * 2, "a warp's sums take its stages' place");

  // Elements from the first of the rows to a chunk. A row is half of all banks, or all.
  static __device__ int At(int row, int chunk) {
    return row * kStep + (chunk ^ (kSplit ? row & 7 : row / 2 & 3)) * 8;
  }
};

// A gelu_tanh whose error is far below what 16 bits keep: 2^x and a reciprocal of the hardware.
[[maybe_unused]] __device__ __forceinline__ float FastGeluTanh(float x) {
  constexpr float kLog2e = 1.4426950408889634f;
  const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return __fdividef(x, 1.f + FastExp2(-2.f * kLog2e * u));
}

template <bool kSplit>
__device__ __forceinline__ float ActivateResult(int activation, float y) {
  switch (activation) {
    case static_cast<int>(Activation::kGeluTanh):
      return kSplit ? Activate<Activation::kGeluTanh>(y) : FastGeluTanh(y);
    case static_cast<int>(Activation::kGeluErf):
      return Activate<Activation::kGeluErf>(y);
    case static_cast<int>(Activation::kRelu):
      return Activate<Activation::kRelu>(y);
    default:
      return y;
  }
}

// The block computes y[kRows, kCols] over the k range of blockIdx.z, of which each warp takes a
// part; their sums are added up at the end. No warp waits for another until then: what it
// multiplies it has fetched itself. The first stages of w are on their way before the previous
// kernel ends. Accumulates in float32. Requires k % 8 == 0, n % 2 == 0.
//
// kSplit: x and w are split rows, k counts their halves, and what each 16 numbers give is added to
// the sums by float32 arithmetic: see gemm/split/split_gemm.h.
template <typename T, bool kSplit, int kRows, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    FewRowsGemmKernel(const FewRowsParams p, int k_per_split) {
#if __CUDA_ARCH__ >= 800
  using Tile = FewRowsTile<kSplit, kRows, kStages>;
  using Output = std::conditional_t<kSplit, float, T>;
  constexpr int kStep = Tile::kStep, kChunks = kStep / 8;
  const T* const __restrict__ x = static_cast<const T*>(p.x);
  const T* const __restrict__ w = static_cast<const T*>(p.w);
  const int rows = p.rows, n = p.n, k = p.k;
  constexpr int kRowTiles = kRows / 16, kColTiles = kCols / 8;
  extern __shared__ __align__(128) unsigned char shared[];

  const int row0 = blockIdx.y * kRows, col0 = blockIdx.x * kCols;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int k_begin = blockIdx.z * k_per_split, k_end = min(k, k_begin + k_per_split);
  // The block's steps from first_step to before first_step + num_steps are this warp's.
  const int block_steps = max(0, (k_end - k_begin + kStep - 1) / kStep);
  const int first_step = block_steps * warp / kWarps;
  const int num_steps = block_steps * (warp + 1) / kWarps - first_step;
  T* const stages = reinterpret_cast<T*>(shared) + warp * Tile::kWarpElems;

  const auto load = [&](auto count, const T* source, int first, int limit, T* target, int step) {
    ForEachChunk<32, count, kChunks>(lane, [&](int r, int c) {
      const int column = k_begin + (first_step + step) * kStep + c * 8;
      const bool valid = step < num_steps && first + r < limit && column < k_end;
      CopyAsync16(target + Tile::At(r, c),
                  valid ? source + static_cast<int64_t>(first + r) * k + column : source, valid);
    });
  };
  const auto stage_x = [&](int step) { return stages + step % kStages * Tile::kStageElems; };
  const auto stage_w = [&](int step) { return stage_x(step) + kRows * kStep; };
  const auto load_x = [&](int step) {
    load(std::integral_constant<int, kRows>(), x, row0, rows, stage_x(step), step);
  };
  const auto load_w = [&](int step) {
    load(std::integral_constant<int, kCols>(), w, col0, n, stage_w(step), step);
  };

  AllowNextKernel();
  // Zeros past the warp's steps: branches here take longer than what they save.
#pragma unroll
  for (int s = 0; s < kStages; ++s) load_w(s);
  // This thread's columns of the result. Weights too: at the end it would wait for them.
  const int column = thread % (kCols / 2) * 2;
  float2 column_bias = make_float2(0.f, 0.f), column_scale = make_float2(1.f, 1.f);
  if (col0 + column < n) {
    if (p.bias != nullptr) {
      const Output* const bias = static_cast<const Output*>(p.bias) + col0 + column;
      column_bias = make_float2(ToFloat(bias[0]), ToFloat(bias[1]));
    }
    if constexpr (kSplit) {
      column_scale = make_float2(p.w_scale[col0 + column], p.w_scale[col0 + column + 1]);
    }
  }
  WaitForPreviousKernel();
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    load_x(s);
    CommitCopies();
  }
  // This thread's rows of the result.
  constexpr int kRowsApart = kThreads / (kCols / 2);
  [[maybe_unused]] float row_scale[kRows / kRowsApart];
  if constexpr (kSplit) {
#pragma unroll
    for (int i = 0; i < kRows / kRowsApart; ++i) {
      const int row = row0 + thread / (kCols / 2) + i * kRowsApart;
      row_scale[i] = row < rows ? p.x_scale[row] : 0.f;
    }
  }

  float acc[kRowTiles][kColTiles][4] = {};
  for (int step = 0; step < num_steps; ++step) {
    WaitCopies<kStages - 1>();
    __syncwarp();
    // `chunk` is the first of two that have 16 numbers.
    const auto load_x_matrices = [&](int i, int chunk, uint32_t(&a)[4]) {
      LoadMatrices(a,
                   SharedAddress(stage_x(step) + Tile::At(i * 16 + lane % 16, chunk + lane / 16)));
    };
    const auto load_w_matrices = [&](int j, int chunk, uint32_t(&b)[4]) {
      LoadMatrices(b, SharedAddress(stage_w(step) + Tile::At(j * 8 + lane % 8 + lane / 16 * 8,
                                                             chunk + lane / 8 % 2)));
    };
    // All that a product needs is loaded before the first, and neighbours add to different sums:
    // few warps have nobody else to fill the time that each takes.
    if constexpr (kSplit) {
      constexpr int kLow = kSplitGroup / 8;  // chunks from high halves to low ones
#pragma unroll
      for (int block = 0; block < kSplitGroup / 16; ++block) {
        const int chunk = block * 2;
        uint32_t high[kRowTiles][4], low[kRowTiles][4];
        uint32_t w_high[kColTiles / 2][4], w_low[kColTiles / 2][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          load_x_matrices(i, chunk, high[i]);
          load_x_matrices(i, chunk + kLow, low[i]);
        }
#pragma unroll
        for (int j = 0; j < kColTiles / 2; ++j) {
          load_w_matrices(2 * j, chunk, w_high[j]);
          load_w_matrices(2 * j, chunk + kLow, w_low[j]);
        }
        float part[kRowTiles][kColTiles][4] = {};
        const auto multiply = [&](const uint32_t(&x_half)[kRowTiles][4],
                                  const uint32_t(&w_half)[kColTiles / 2][4]) {
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int j = 0; j < kColTiles; ++j) {
              const uint32_t(&w2)[4] = w_half[j / 2];
              MultiplyAdd<T>(part[i][j], x_half[i], w2[j % 2 * 2], w2[j % 2 * 2 + 1]);
            }
          }
        };
        multiply(low, w_high);
        multiply(high, w_low);
        multiply(high, w_high);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
          for (int j = 0; j < kColTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[i][j][e] += part[i][j][e];
          }
        }
      }
    } else {
      constexpr int kBlocks = kChunks / 2;  // of 16 numbers
      uint32_t a[kBlocks][kRowTiles][4], b[kBlocks][kColTiles / 2][4];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) load_x_matrices(i, block * 2, a[block][i]);
#pragma unroll
        for (int j = 0; j < kColTiles / 2; ++j) load_w_matrices(2 * j, block * 2, b[block][j]);
      }
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
          for (int j = 0; j < kColTiles; ++j) {
            const uint32_t(&w2)[4] = b[block][j / 2];
            MultiplyAdd<T>(acc[i][j], a[block][i], w2[j % 2 * 2], w2[j % 2 * 2 + 1]);
          }
        }
      }
    }
    if (step + kStages < num_steps) {
      __syncwarp();
      load_w(step + kStages);
      load_x(step + kStages);
    }
    CommitCopies();
  }

  // The sums of all warps, float32 [kRows][kSumPitch] each, in the place of their stages.
  WaitCopies<0>();
  __syncwarp();
  const auto sums_of = [&](int of_warp) {
    return reinterpret_cast<float*>(reinterpret_cast<T*>(shared) + of_warp * Tile::kWarpElems);
  };
  float* const sums = sums_of(warp);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      float* to = sums + (i * 16 + lane / 4) * Tile::kSumPitch + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * Tile::kSumPitch) =
          make_float2(acc[i][j][2], acc[i][j][3]);
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRows / kRowsApart; ++i) {
    const int r = thread / (kCols / 2) + i * kRowsApart;
    if (row0 + r >= rows || col0 + column >= n) continue;
    float2 y = make_float2(0.f, 0.f);
#pragma unroll
    for (int part = 0; part < kWarps; ++part) {
      const float2 f =
          *reinterpret_cast<const float2*>(sums_of(part) + r * Tile::kSumPitch + column);
      y.x += f.x;
      y.y += f.y;
    }
    if constexpr (kSplit) {
      y.x = y.x * column_scale.x * row_scale[i];
      y.y = y.y * column_scale.y * row_scale[i];
    }
    if (p.partials != nullptr) {
      const int64_t row = static_cast<int64_t>(blockIdx.z) * rows + row0 + r;
      *reinterpret_cast<float2*>(p.partials + row * n + col0 + column) = y;
      continue;
    }
    y.x = ActivateResult<kSplit>(p.activation, y.x + column_bias.x);
    y.y = ActivateResult<kSplit>(p.activation, y.y + column_bias.y);
    Output* const to = static_cast<Output*>(p.output) + (row0 + r) * p.output_pitch + col0 + column;
    if constexpr (kSplit) {
      *reinterpret_cast<float2*>(to) = y;
    } else {
      *reinterpret_cast<uint32_t*>(to) = ToPair<T>(y.x, y.y);
    }
  }
#endif
}

// Rows of a block's tile, of 16-bit weights.
int64_t TileRows(int64_t rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

// Elements of T in a row of x or w.
int64_t RowElements(DataType dtype, int64_t k) {
  return dtype == DataType::kFloat32 ? 2 * SplitPitch(k) : k;
}

template <typename T, bool kSplit, int kRows, int kStages>
Status LaunchTile(const FewRowsGemmArgs& args, const LaunchContext& context) {
  using Tile = FewRowsTile<kSplit, kRows, kStages>;
  const int64_t k = RowElements(args.dtype, args.k);
  const int64_t k_per_split =
      AlignUp((k + args.num_splits - 1) / args.num_splits, int64_t{Tile::kStep});
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
  return Launch(FewRowsGemmKernel<T, kSplit, kRows, kStages>, grid, kThreads, Tile::kBytes, context,
                params, static_cast<int>(k_per_split));
}

// As many stages as leave room for a block of the next kernel, but for 32 split rows.
template <typename T>
Status LaunchTyped(const FewRowsGemmArgs& args, const LaunchContext& context) {
  const int64_t rows = TileRows(args.rows);
  if (rows == 16) return LaunchTile<T, false, 16, 4>(args, context);
  if (rows == 32) return LaunchTile<T, false, 32, 3>(args, context);
  return LaunchTile<T, false, 64, 2>(args, context);
}

Status LaunchSplit(const FewRowsGemmArgs& args, const LaunchContext& context) {
  if (args.rows <= 16) return LaunchTile<half, true, 16, 2>(args, context);
  return LaunchTile<half, true, 32, 2>(args, context);
}

}  // namespace

bool FewRowsGemmSupported(const FewRowsGemmArgs& args, const LaunchContext& context) {
  const bool is_split = args.dtype == DataType::kFloat32;
  const bool whole_chunks = is_split || args.k % 8 == 0;  // split rows have whole groups
  const int64_t most_shared =
      is_split ? FewRowsTile<true, 32, 2>::kBytes : FewRowsTile<false, 32, 3>::kBytes;
  return context.compute_capability >= 80 && whole_chunks && args.n % 8 == 0 &&
         args.rows <= 65535 && context.max_shared_bytes >= most_shared;
}

int FewRowsGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context) {
  constexpr int64_t kMinPerSplit = 256;  // a split of less is not worth its partial sums
  const int64_t tile_rows = TileRows(rows);
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows * ((n + kCols - 1) / kCols);
  const int64_t wanted = std::max<int64_t>(1, context.num_multiprocessors * 5 / 4 / tiles);
  return static_cast<int>(std::min<int64_t>(
      {wanted, std::max<int64_t>(1, k / kMinPerSplit), int64_t{kMaxNormPartials}}));
}

Status LaunchFewRowsGemm(const FewRowsGemmArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  switch (args.dtype) {
    case DataType::kFloat32:
      return LaunchSplit(args, context);
    case DataType::kFloat16:
      return LaunchTyped<half>(args, context);
    case DataType::kBFloat16:
      return LaunchTyped<__nv_bfloat16>(args, context);
    default:
      return Unimplemented("a product of few rows in ", Name(args.dtype),
                           "; there are float32, float16 and bfloat16");
  }
}

}  // namespace cuda
}  // namespace ft
