// Products of 8 bits of any size on tensor cores (mma.sync): integers on sm_75 and later, float8 on
// sm_89 and later.
#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/int8/activation.cuh"
#include "tf_ops/cuda/gemm/int8/plain.h"
#include "tf_ops/cuda/integers.cuh"

namespace ft {
namespace cuda {
namespace {

constexpr int kStep = 128;  // of k in one stage: a row of it is 128 bytes
constexpr int kChunks = 8;  // of 16 bytes
constexpr int kThreads = 128;

// The four warps of a block own kRowTiles * 16 x kColTiles * 8 elements each.
template <int kWarpRows, int kWarpCols, int kRowTileCount, int kColTileCount, int kStageCount>
struct Tile {
  static constexpr int kWarpsAcross = kWarpCols, kRowTiles = kRowTileCount,
                       kColTiles = kColTileCount, kStages = kStageCount;
  static constexpr int kRows = kWarpRows * kRowTiles * 16, kCols = kWarpCols * kColTiles * 8;
  static constexpr int kStageBytes = (kRows + kCols) * kStep;
  static_assert(kWarpRows * kWarpCols * 32 == kThreads && kColTiles % 2 == 0, "the layout");
};

// Rows `first` to `first` + kCount - 1 of `source` [limit,k], of which k range `step`, with zeros
// outside. Chunk c of row r lies at c ^ (r % 8), so that ldmatrix meets no bank conflict.
template <int kCount>
__device__ __forceinline__ void LoadStage(const int8_t* source, int first, int limit, int k,
                                          int step, unsigned char* target) {
  const bool aligned = k % 16 == 0;
  for (int i = threadIdx.x; i < kCount * kChunks; i += kThreads) {
    const int r = i / kChunks, c = i % kChunks, column = step * kStep + c * 16;
    const bool valid = first + r < limit && column < k;
    const int8_t* const from =
        valid ? source + static_cast<int64_t>(first + r) * k + column : source;
    unsigned char* const to = target + r * kStep + (c ^ (r & 7)) * 16;
    if (aligned) {
      CopyAsync16(to, from, valid);
      continue;
    }
    uint32_t words[4];
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      const uint32_t byte = valid && column + e < k ? static_cast<uint8_t>(from[e]) : 0u;
      words[e / 4] = (e % 4 == 0 ? 0u : words[e / 4]) | byte << e % 4 * 8;
    }
    *reinterpret_cast<uint4*>(to) = uint4{words[0], words[1], words[2], words[3]};
  }
}

template <typename T>
constexpr bool kIsRounded = std::is_same_v<T, int8_t> || std::is_same_v<T, Float8>;

// Two neighbours of a row, of which the second may not exist.
template <typename T>
__device__ __forceinline__ void StorePair(T* to, float y0, float y1, bool has_second,
                                          bool is_pair_aligned) {
  if (is_pair_aligned) {
    if constexpr (kIsRounded<T>) {
      *reinterpret_cast<uint16_t*>(to) = PackPair(std::is_same_v<T, Float8>, y0, y1);
    } else if constexpr (std::is_same_v<T, float>) {
      *reinterpret_cast<float2*>(to) = make_float2(y0, y1);
    } else {
      *reinterpret_cast<uint32_t*>(to) = ToPair<T>(y0, y1);
    }
    return;
  }
  if constexpr (kIsRounded<T>) {
    to[0] = RoundTo<T>(y0);
    if (has_second) to[1] = RoundTo<T>(y1);
  } else {
    to[0] = FromFloat<T>(y0);
    if (has_second) to[1] = FromFloat<T>(y1);
  }
}

// What follows the sums of a block, in place of which they are.
struct Epilogue {
  const float* scale;
  const float* bias;
  const float* out_scale;
  Int8Activation activation;
};

template <typename T, typename Sum>
__device__ __forceinline__ void StoreSums(const Epilogue& e, Sum sum0, Sum sum1, float out_scale,
                                          int column, int n, T* row) {
  if (column >= n) return;
  const int next = min(column + 1, n - 1);
  const float bias0 = e.bias != nullptr ? e.bias[column] : 0.f;
  const float bias1 = e.bias != nullptr ? e.bias[next] : 0.f;
  float y[2] = {fmaf(static_cast<float>(sum0), e.scale[column], bias0),
                fmaf(static_cast<float>(sum1), e.scale[next], bias1)};
  if constexpr (kIsRounded<T>) {
    ActivateIntegers<2>(e.activation, y);
    y[0] *= out_scale;
    y[1] *= out_scale;
  }
  StorePair(row + column, y[0], y[1], column + 1 < n, n % 2 == 0);
}

// Blocks go round the columns first: they share rows of x. Sum is int for integers, float for
// float8.
template <typename T, typename Sum, typename C>
__global__ void __launch_bounds__(kThreads)
    Int8GemmKernel(const int8_t* __restrict__ x, const int8_t* __restrict__ w, const Epilogue e,
                   T* __restrict__ output, int rows, int n, int k) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int col_tiles = (n + C::kCols - 1) / C::kCols;
  const int row0 = static_cast<int>(blockIdx.x) / col_tiles * C::kRows;
  const int col0 = static_cast<int>(blockIdx.x) % col_tiles * C::kCols;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp / C::kWarpsAcross * C::kRowTiles * 16;
  const int warp_col = warp % C::kWarpsAcross * C::kColTiles * 8;
  const int num_steps = (k + kStep - 1) / kStep;
  const auto stage = [&](int step) { return shared + step % C::kStages * C::kStageBytes; };
  const auto load_x = [&](int step) { LoadStage<C::kRows>(x, row0, rows, k, step, stage(step)); };
  const auto load_w = [&](int step) {
    LoadStage<C::kCols>(w, col0, n, k, step, stage(step) + C::kRows * kStep);
  };

  AllowNextKernel();
  // The first weights are on their way before the previous kernel ends.
  for (int s = 0; s < C::kStages - 1 && s < num_steps; ++s) load_w(s);
  WaitForPreviousKernel();
#pragma unroll
  for (int s = 0; s < C::kStages - 1; ++s) {
    if (s < num_steps) load_x(s);
    CommitCopies();
  }
  Sum sum[C::kRowTiles][C::kColTiles][4] = {};
  for (int step = 0; step < num_steps; ++step) {
    WaitCopies<C::kStages - 2>();
    __syncthreads();  // this step's bytes are there, and all have read the last one's
    const int next = step + C::kStages - 1;
    if (next < num_steps) {
      load_x(next);
      load_w(next);
    }
    CommitCopies();
    const unsigned char* const stage_x = stage(step);
    const unsigned char* const stage_w = stage_x + C::kRows * kStep;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      uint32_t a[C::kRowTiles][4];
#pragma unroll
      for (int i = 0; i < C::kRowTiles; ++i) {
        const int r = warp_row + i * 16 + lane % 16;
        LoadMatrices(a[i],
                     SharedAddress(stage_x + r * kStep + ((chunk + lane / 16) ^ (r & 7)) * 16));
      }
#pragma unroll
      for (int j = 0; j < C::kColTiles; j += 2) {
        uint32_t b[4];
        const int r = warp_col + j * 8 + lane % 8 + lane / 16 * 8;
        LoadMatrices(b,
                     SharedAddress(stage_w + r * kStep + ((chunk + lane / 8 % 2) ^ (r & 7)) * 16));
#pragma unroll
        for (int i = 0; i < C::kRowTiles; ++i) {
          MultiplyAddBytes(sum[i][j], a[i], b[0], b[1]);
          MultiplyAddBytes(sum[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Sixteen rows of the warp's sums at a time go through shared memory: neighbouring lanes then
  // store neighbours, and the code of the epilogue is there once.
  __syncthreads();
  constexpr int kWarpCols = C::kColTiles * 8, kPitch = kWarpCols + 8;
  static_assert(kThreads / 32 * 16 * kPitch * 4 <= C::kStages * C::kStageBytes,
                "room for the sums");
  Sum* const slab = reinterpret_cast<Sum*>(shared) + warp * 16 * kPitch;
  const float out_scale = e.out_scale != nullptr ? *e.out_scale : 1.f;
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < C::kColTiles; ++j) {
      Sum* const to = slab + lane / 4 * kPitch + j * 8 + lane % 4 * 2;
      *reinterpret_cast<Piece<Sum, 2>*>(to) = {sum[i][j][0], sum[i][j][1]};
      *reinterpret_cast<Piece<Sum, 2>*>(to + 8 * kPitch) = {sum[i][j][2], sum[i][j][3]};
    }
    __syncwarp();
#pragma unroll 1
    for (int at = lane; at < 16 * kWarpCols / 2; at += 32) {
      const int r = at / (kWarpCols / 2), c = at % (kWarpCols / 2) * 2;
      const int row = row0 + warp_row + i * 16 + r;
      if (row >= rows) break;
      const auto pair = *reinterpret_cast<const Piece<Sum, 2>*>(slab + r * kPitch + c);
      StoreSums(e, pair.v[0], pair.v[1], out_scale, col0 + warp_col + c, n,
                output + static_cast<int64_t>(row) * n);
    }
    __syncwarp();
  }
}

template <typename T, typename Sum, typename C>
Status LaunchTile(const Int8GemmArgs& args, const LaunchContext& context) {
  const int64_t tiles =
      (args.rows + C::kRows - 1) / C::kRows * ((args.n + C::kCols - 1) / C::kCols);
  const Epilogue epilogue = {args.scale, args.bias, args.out_scale, args.activation};
  return Launch(Int8GemmKernel<T, Sum, C>, Grid{tiles}, kThreads, C::kStages * C::kStageBytes,
                context, static_cast<const int8_t*>(args.x), static_cast<const int8_t*>(args.w),
                epilogue, static_cast<T*>(args.output), static_cast<int>(args.rows),
                static_cast<int>(args.n), static_cast<int>(args.k));
}

template <typename T, typename Sum>
Status LaunchTyped(const Int8GemmArgs& args, const LaunchContext& context) {
  if (args.rows <= 16) return LaunchTile<T, Sum, Tile<1, 4, 1, 2, 4>>(args, context);
  const int64_t large_tiles = (args.rows + 127) / 128 * ((args.n + 127) / 128);
  if (large_tiles >= context.num_multiprocessors) {
    return LaunchTile<T, Sum, Tile<2, 2, 4, 8, 2>>(args, context);
  }
  return LaunchTile<T, Sum, Tile<2, 2, 2, 4, 3>>(args, context);
}

}  // namespace

Status LaunchPlainInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context) {
  if (args.output_dtype == DataType::kInt8) return LaunchTyped<int8_t, int>(args, context);
  if (args.output_dtype == DataType::kFloat8) return LaunchTyped<Float8, float>(args, context);
  return DispatchType(args.output_dtype, [&](auto type) {
    using T = decltype(type);
    return args.input_dtype == DataType::kFloat8 ? LaunchTyped<T, float>(args, context)
                                                 : LaunchTyped<T, int>(args, context);
  });
}

}  // namespace cuda
}  // namespace ft
