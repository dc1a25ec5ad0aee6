// Products whose tiles, or what they read, a cluster of blocks shares, for Hopper. Included by
// hopper_cluster_*.cu; compiled for sm_90a alone.
//
// Few tiles leave multiprocessors idle, and small ones read more than large ones: blocks that have
// a part of k each of the same tile keep it large. Their sums go from registers into the shared
// memory of the block that adds up that part of the tile, always in the same order. Blocks of tiles
// one below the other fetch the rows of w for each other.
#pragma once

#include <type_traits>

#include "tf_ops/cuda/gemm/cluster/hopper.h"
#include "tf_ops/cuda/gemm/gelu.cuh"
#include "tf_ops/cuda/gemm/hopper.cuh"

namespace ft {
namespace cuda {
namespace hopper_cluster {

// What follows the sum and the bias.
enum class Epilogue { kNone, kGelu, kResidual };

// Sizes of one instance. A block multiplies kRows rows of x, a warpgroup for 64 of them, by
// kColumns rows of w, and has a warp for the copies, which fill a ring of kStages stages of kBoxes
// times 128 bytes of each row. A cluster has kParts blocks for a tile, with a part of k each, or
// kSharers tiles, one below the other.
//
// After the last product a block adds up and stores its part of the tile: with two parts, every
// other 8 rows, with four of these half the columns. A thread then has one row of it where without
// parts it has two.
template <typename Input_, typename T_, int kRows_, int kColumns_, int kParts_, int kSharers_,
          int kStages_, int kBoxes_>
struct ClusterGemm {
  using Input = Input_;
  using T = T_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kStages = kStages_, kBoxes = kBoxes_;
  static constexpr int kParts = kParts_, kSharers = kSharers_;
  using Product = TileProduct<Input, kColumns>;
  static constexpr bool kScales = sizeof(Input) == 1;
  using Bias = std::conditional_t<kScales, float, T>;

  static constexpr int kWarps = kRows / 16;  // that multiply
  static constexpr int kMultipliers = kWarps * 32, kThreads = kMultipliers + 32;
  static constexpr int kBoxK = kStageRowBytes / sizeof(Input);
  static constexpr int kXBytes = kRows * kStageRowBytes, kWBytes = kColumns * kStageRowBytes;
  static constexpr int kBoxBytes = kXBytes + kWBytes, kStageBytes = kBoxes * kBoxBytes;
  static constexpr int kShareColumns = kColumns / kSharers;  // that a block fetches for all

  static constexpr int kThreadRows = kParts == 1 ? 2 : 1;
  static constexpr int kColumnParts = kParts == 4 ? 2 : 1;
  static constexpr int kPartColumns = kColumns / kColumnParts, kPartOctets = kPartColumns / 8;
  static constexpr int kPartSums = kThreadRows * kPartOctets * 2;  // of a thread
  static constexpr int kPartBytes = kMultipliers * kPartSums * 4;

  // The part's rows on their way out, in the place of the ring; what is added to their pitch
  // spreads them over the banks.
  static constexpr int kOutPitch = kPartColumns * 2 + 16;
  static constexpr int kWarpOutBytes = 8 * kThreadRows * kOutPitch;

  static constexpr int kReceivedOffset = kStages * kStageBytes;
  static constexpr int kBiasOffset = kReceivedOffset + (kParts - 1) * kPartBytes;
  static constexpr int kScaleOffset = kBiasOffset + kColumns * sizeof(Bias);
  static constexpr int kBarrierOffset = kScaleOffset + (kScales ? kColumns * 4 : 0);
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kStages + kWarps) * 8;

  static_assert(kParts == 1 ? kSharers == 2 : (kParts == 2 || kParts == 4) && kSharers == 1,
                "blocks of a cluster");
  static_assert(kShareColumns % 8 == 0, "the parts that blocks fetch for each other are swizzles");
  static_assert(kPartOctets % (4 / kThreadRows) == 0 && kPartSums % 4 == 0, "stored at a time");
  static_assert(kWarps * kWarpOutBytes <= kReceivedOffset && kBarrierOffset % 8 == 0, "layout");
};

template <typename C>
struct ClusterGemmParams {
  int rows, n, num_stages;
  bool fetches_ahead;
  const float* scale;
  const typename C::Bias* bias;
  const typename C::T* residual;
  FastGelu gelu;
  typename C::T* output;
};

// What a block computes. Lane 4g + t of warp w holds rows 16w + g and 16w + g + 8 of the tile, and
// of each 8 columns number 2t and 2t + 1: x[4j + 2h + c] is row 16w + g + 8h, column 8j + 2t + c.
template <typename C, Epilogue kEpilogue>
struct TileSums {
  using T = typename C::T;
  using Product = typename C::Product;

  int thread, lane, warp, rank;  // rank: the part of k, and of the tile
  float x[C::kColumns / 2];
  float part[C::kPartSums];  // with parts alone: part[2 * octet + c]
  uint32_t residual[C::kThreadRows * C::kPartOctets];

  __device__ __forceinline__ auto& products() {
    return reinterpret_cast<typename Product::Sum(&)[C::kColumns / 2]>(x);
  }

  // The thread's row number `i` of the part, in the tile.
  __device__ __forceinline__ int Row(int i) const {
    return warp * 16 + lane / 4 + 8 * (C::kParts == 1 ? i : rank % 2);
  }
  // The part's first column in the tile.
  __device__ __forceinline__ int FirstColumn() const {
    return C::kColumnParts == 1 ? 0 : rank / 2 * C::kPartColumns;
  }

  // Reads the part's residual from a matrix that begins at the tile and has n columns.
  __device__ __forceinline__ void LoadResidual(const T* from, int64_t n, int rows, int columns) {
#pragma unroll
    for (int i = 0; i < C::kThreadRows; ++i) {
      const int row = Row(i);
#pragma unroll
      for (int octet = 0; octet < C::kPartOctets; ++octet) {
        const int column = FirstColumn() + octet * 8 + lane % 4 * 2;
        residual[i * C::kPartOctets + octet] =
            row < rows && column < columns
                ? *reinterpret_cast<const uint32_t*>(from + row * n + column)
                : 0;
      }
    }
  }

  // Number i of kPartSums of what this block has of part `of`.
  __device__ __forceinline__ float Of(int of, int i) const {
    return x[4 * (of / 2 * C::kPartOctets + i / 2) + 2 * (of % 2) + i % 2];
  }

  // A sum of the block's part, which without parts is the tile.
  __device__ __forceinline__ float Sum(int i, int octet, int c) const {
    const float sum = C::kParts == 1 ? x[4 * octet + 2 * i + c] : part[2 * octet + c];
    return Product::kIntegers ? static_cast<float>(__float_as_int(sum)) : sum;
  }

  // Sends the other blocks their parts, and adds up its own. `received` is the address of what
  // comes here, which `received_here` points to, `count` of the warp's barrier; the same in all
  // blocks.
  __device__ __forceinline__ void Exchange(uint32_t received, uint32_t count,
                                           const unsigned char* received_here) {
    constexpr int kVectors = C::kPartSums / 4;
    if (lane == 0) ArriveExpectBytes(count, (C::kParts - 1) * 32 * C::kPartSums * 4);
    // Where block `to` has what comes from block `from`: nothing comes from itself.
    const auto place = [&](int to, int from) {
      return (from - (from > to)) * C::kPartBytes + thread * 16;
    };
#pragma unroll
    for (int to = 0; to < C::kParts; ++to) {
      if (to == rank) {
#pragma unroll
        for (int i = 0; i < C::kPartSums; ++i) part[i] = Of(to, i);
        continue;
      }
      const uint32_t there = MapToBlock(received + place(to, rank), to);
      const uint32_t count_there = MapToBlock(count, to);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        uint32_t four[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = __float_as_uint(Of(to, 4 * i + j));
        StoreRemote(there + i * C::kMultipliers * 16, four, count_there);
      }
    }
    WaitBarrier(count, 0);
    __syncwarp();
    float total[C::kPartSums];
#pragma unroll
    for (int from = 0; from < C::kParts; ++from) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        float four[4];
        if (from == rank) {
#pragma unroll
          for (int j = 0; j < 4; ++j) four[j] = part[4 * i + j];
        } else {
          const float4 got = *reinterpret_cast<const float4*>(received_here + place(rank, from) +
                                                              i * C::kMultipliers * 16);
          four[0] = got.x;
          four[1] = got.y;
          four[2] = got.z;
          four[3] = got.w;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& sum = total[4 * i + j];
          if (from == 0) {
            sum = four[j];
          } else if constexpr (Product::kIntegers) {
            sum = __int_as_float(__float_as_int(sum) + __float_as_int(four[j]));
          } else {
            sum += four[j];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < C::kPartSums; ++i) part[i] = total[i];
  }

  // Row number `i` of the thread's, columns 2t and 2t + 1 of the part's octet, as they are stored.
  __device__ __forceinline__ uint32_t Finish(int i, int octet, const typename C::Bias* bias,
                                             const float* scale, const FastGelu& gelu) const {
    const int column = FirstColumn() + octet * 8 + lane % 4 * 2;
    float y[2] = {Sum(i, octet, 0), Sum(i, octet, 1)};
    if constexpr (C::kScales) {
#pragma unroll
      for (int c = 0; c < 2; ++c) y[c] = fmaf(y[c], scale[column + c], bias[column + c]);
    } else {
      const float2 b = PairToFloats<T>(*reinterpret_cast<const uint32_t*>(bias + column));
      y[0] += b.x;
      y[1] += b.y;
    }
    if constexpr (kEpilogue == Epilogue::kGelu) {
#pragma unroll
      for (float& one : y) one = gelu(one);
    }
    if constexpr (kEpilogue == Epilogue::kResidual) {
      const float2 r = PairToFloats<T>(residual[i * C::kPartOctets + octet]);
      y[0] += r.x;
      y[1] += r.y;
    }
    return ToPair<T>(y[0], y[1]);
  }

  // Stores the part to a matrix that begins at the tile, by way of the warp's shared memory at
  // `out`.
  __device__ __forceinline__ void Store(uint32_t out, T* to, int64_t n, int rows, int columns,
                                        const typename C::Bias* bias, const float* scale,
                                        const FastGelu& gelu) const {
    constexpr int kOctets = 4 / C::kThreadRows;  // that are stored at a time
#pragma unroll
    for (int octet = 0; octet < C::kPartOctets; octet += kOctets) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = Finish(i % C::kThreadRows, octet + i / C::kThreadRows, bias, scale, gelu);
      }
      const int matrix = lane / 8;
      StoreMatrices(out + (matrix % C::kThreadRows * 8 + lane % 8) * C::kOutPitch +
                        (octet + matrix / C::kThreadRows) * 16,
                    pairs);
    }
    FenceAsyncProxy();
    __syncwarp();
    const int row = warp * 16 + lane + 8 * (C::kParts == 1 ? 0 : rank % 2);
    const int width = min(C::kPartColumns, columns - FirstColumn());
    if (lane < 8 * C::kThreadRows && row < rows && width > 0) {
      CopyOut(to + row * n + FirstColumn(), out + lane * C::kOutPitch, width * 2);
      WaitCopiesOut();
    }
  }
};

template <typename C, Epilogue kEpilogue>
__global__ void __launch_bounds__(C::kThreads, 1)
    ClusterGemmKernel(const ClusterGemmParams<C> p, const __grid_constant__ CUtensorMap x_map,
                      const __grid_constant__ CUtensorMap w_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename C::T;
  using Bias = typename C::Bias;
  constexpr int kStages = C::kStages, kWarps = C::kWarps;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = SharedAddress(shared);
  const auto barrier = [&](int i) { return base + C::kBarrierOffset + i * 8; };
  const auto full = [&](int slot) { return barrier(slot); };
  const auto empty = [&](int slot) { return barrier(kStages + slot); };
  const auto x_box = [&](int slot, int box) {
    return base + slot * C::kStageBytes + box * C::kBoxBytes;
  };
  const auto w_box = [&](int slot, int box) { return x_box(slot, box) + C::kXBytes; };
  Bias* const bias = reinterpret_cast<Bias*>(shared + C::kBiasOffset);
  float* const scale = reinterpret_cast<float*>(shared + C::kScaleOffset);

  // The grid is [parts of k, and tiles of a row] x [rows of tiles].
  const int rank = blockIdx.x % C::kParts, sharer = blockIdx.y % C::kSharers;
  const int first_column = blockIdx.x / C::kParts * C::kColumns;
  const int first_row = blockIdx.y * C::kRows;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int first_stage = p.num_stages * rank / C::kParts;
  const int num_stages = p.num_stages * (rank + 1) / C::kParts - first_stage;

  // Each block fetches its part of the rows of w for all sharers.
  const int share_column = first_column + sharer * C::kShareColumns;
  const auto stage_column = [&](int k, int box) {
    return ((first_stage + k) * C::kBoxes + box) * C::kBoxK;
  };
  const auto copy_w = [&](int slot, int k) {
    ArriveExpectBytes(full(slot), C::kStageBytes);
#pragma unroll
    for (int box = 0; box < C::kBoxes; ++box) {
      if constexpr (C::kSharers == 1) {
        CopyBox(w_box(slot, box), &w_map, stage_column(k, box), first_column, full(slot));
      } else {
        constexpr uint16_t kAllBlocks = (1 << C::kSharers) - 1;
        CopyBoxTo(kAllBlocks, w_box(slot, box) + sharer * C::kShareColumns * kStageRowBytes, &w_map,
                  stage_column(k, box), share_column, full(slot));
      }
    }
  };
  const int ahead = min(kStages, num_stages);

  AllowNextKernel();
  if (warp == kWarps && lane == 0) {
    PrefetchTensorMap(&w_map);
    PrefetchTensorMap(&x_map);
    for (int slot = 0; slot < kStages; ++slot) {
      InitBarrier(full(slot), 1);
      InitBarrier(empty(slot), C::kRows / kUnitRows * C::kSharers);
    }
    for (int i = 0; i < kWarps; ++i) InitBarrier(barrier(2 * kStages + i), 1);
    FenceBarrierInit();
    // Weights do not wait for the previous kernel, nor for anybody where they are for this block.
    if constexpr (C::kSharers == 1) {
      for (int k = 0; k < ahead; ++k) copy_w(k, k);
    }
  }
  __syncthreads();
  ArriveCluster();
  if constexpr (C::kSharers > 1) WaitCluster();

  RingPlace<kStages> place;
  if (warp == kWarps) {
    if (lane == 0) {
      if constexpr (C::kSharers > 1) {
        for (int k = 0; k < ahead; ++k) copy_w(k, k);
      }
      if (p.fetches_ahead) {
        // The blocks that read the same weights bring a part each into the L2 cache.
        const int sharing_rows = gridDim.y / C::kSharers;
        for (int k = ahead + blockIdx.y / C::kSharers; k < num_stages; k += sharing_rows) {
#pragma unroll
          for (int box = 0; box < C::kBoxes; ++box) {
            PrefetchBox(&w_map, stage_column(k, box), share_column);
          }
        }
      }
      WaitForPreviousKernel();
      for (int k = 0; k < num_stages; ++k) {
        if (k >= ahead) {
          WaitBarrier(empty(place.slot), place.parity ^ 1);
          copy_w(place.slot, k);
        }
#pragma unroll
        for (int box = 0; box < C::kBoxes; ++box) {
          CopyBox(x_box(place.slot, box), &x_map, stage_column(k, box), first_row,
                  full(place.slot));
        }
        place.Advance();
      }
      if constexpr (C::kSharers > 1) WaitForEmptyRing(empty, &place);
    }
    __syncwarp();
    if constexpr (C::kParts > 1) WaitCluster();
    return;
  }

  for (int i = threadIdx.x; i < C::kColumns; i += C::kMultipliers) {
    const int column = first_column + i;
    bias[i] = p.bias != nullptr && column < p.n ? p.bias[column] : Bias(0.f);
    if constexpr (C::kScales) scale[i] = column < p.n ? p.scale[column] : 0.f;
  }
  TileSums<C, kEpilogue> sums;
  sums.thread = threadIdx.x;
  sums.lane = lane;
  sums.warp = warp;
  sums.rank = rank;
  const int rows = p.rows - first_row, columns = p.n - first_column;  // from the tile on
  const int64_t tile = static_cast<int64_t>(first_row) * p.n + first_column;
  WaitForPreviousKernel();
  if constexpr (kEpilogue == Epilogue::kResidual) {
    sums.LoadResidual(p.residual + tile, p.n, rows, columns);
  }

  // A lane of a warpgroup's first warp for each block that waits for a slot.
  const bool tells = warp % 4 == 0 && lane < C::kSharers;
  const auto release = [&](int slot) {
    if (!tells) return;
    if constexpr (C::kSharers == 1) {
      Arrive(empty(slot));
    } else {
      ArriveRemote(MapToBlock(empty(slot), lane));
    }
  };
  const int x_offset = warp / 4 * kUnitRows * kStageRowBytes;
  const int previous =
      MultiplyStages(num_stages, sums.products(), full, release, &place, [&](int k, int slot) {
#pragma unroll
        for (int box = 0; box < C::kBoxes; ++box) {
          C::Product::AddStage(x_box(slot, box) + x_offset, w_box(slot, box), sums.products(),
                               k == 0 && box == 0);
        }
      });
  if (C::kSharers > 1 && num_stages > 0) release(previous);

  if constexpr (C::kParts > 1) {
    if (num_stages == 0) {
#pragma unroll
      for (float& sum : sums.x) sum = 0.f;  // also as an integer
    }
    // The others' barriers are there.
    WaitCluster();
    sums.Exchange(base + C::kReceivedOffset, barrier(2 * kStages + warp),
                  shared + C::kReceivedOffset);
  }
  // All have their bias, and nobody reads the ring any more.
  WaitNamed(1, C::kMultipliers);
  sums.Store(base + warp * C::kWarpOutBytes, p.output + tile, p.n, rows, columns, bias, scale,
             p.gelu);
#endif
}

template <typename C, Epilogue kEpilogue>
Status Launch(const ClusterGemmArgs& args, const LaunchContext& context) {
  using T = typename C::T;
  using Input = typename C::Input;
  CUtensorMap x_map, w_map;
  FT_RETURN_IF_ERROR(
      MakeRowMap<Input>(args.x, args.rows, args.k, C::kRows, kStageRowBytes, &x_map));
  FT_RETURN_IF_ERROR(
      MakeRowMap<Input>(args.w, args.n, args.k, C::kShareColumns, kStageRowBytes, &w_map));
  // Few rows wait for their weights; where there are more it was lost time.
  constexpr int64_t kMaxRowsAhead = 512, kStageK = C::kBoxes * C::kBoxK;
  const bool is_erf = args.epilogue == GemmEpilogue::kBiasGeluErf;
  const ClusterGemmParams<C> params = {static_cast<int>(args.rows),
                                       static_cast<int>(args.n),
                                       static_cast<int>((args.k + kStageK - 1) / kStageK),
                                       args.rows <= kMaxRowsAhead,
                                       args.scale,
                                       static_cast<const typename C::Bias*>(args.bias),
                                       static_cast<const T*>(args.residual),
                                       is_erf ? FastGelu::Erf() : FastGelu::Tanh(),
                                       static_cast<T*>(args.output)};
  constexpr int64_t kClusterRows = C::kSharers * C::kRows;
  const Grid grid = {(args.n + C::kColumns - 1) / C::kColumns * C::kParts,
                     (args.rows + kClusterRows - 1) / kClusterRows * C::kSharers};
  return LaunchClusters(ClusterGemmKernel<C, kEpilogue>, grid, {C::kParts, C::kSharers},
                        C::kThreads, C::kSharedBytes, context, params, x_map, w_map);
}

// The stages are what fits, of 128 bytes of each row where tiles are large, else of 256.
template <typename Input, typename T>
using Tile64x64Parts4 = ClusterGemm<Input, T, 64, 64, 4, 1, 6, 2>;
template <typename Input, typename T>
using Tile64x64Parts2 = ClusterGemm<Input, T, 64, 64, 2, 1, 6, 2>;
template <typename Input, typename T>
using Tile128x96Parts2 = ClusterGemm<Input, T, 128, 96, 2, 1, 6, 1>;
template <typename Input, typename T>
using Tile64x96Pair = ClusterGemm<Input, T, 64, 96, 1, 2, 10, 1>;
template <typename Input, typename T>
using Tile128x96Pair = ClusterGemm<Input, T, 128, 96, 1, 2, 7, 1>;
template <typename Input, typename T>
using Tile128x144Pair = ClusterGemm<Input, T, 128, 144, 1, 2, 6, 1>;

// The tiles that an H200 was faster with (benchmarks/gpu_profile.md), of 16 bits with a bias
// alone...
template <typename T>
ClusterLauncher FindBiasLauncher(ClusterTile tile) {
  switch (tile) {
    case ClusterTile::k128x96Pair:
      return Launch<Tile128x96Pair<T, T>, Epilogue::kNone>;
    case ClusterTile::k128x144Pair:
      return Launch<Tile128x144Pair<T, T>, Epilogue::kNone>;
    default:
      return nullptr;
  }
}

// ... with a residual...
template <typename T>
ClusterLauncher FindResidualLauncher(ClusterTile tile) {
  switch (tile) {
    case ClusterTile::k64x64Parts4:
      return Launch<Tile64x64Parts4<T, T>, Epilogue::kResidual>;
    case ClusterTile::k64x64Parts2:
      return Launch<Tile64x64Parts2<T, T>, Epilogue::kResidual>;
    case ClusterTile::k128x96Parts2:
      return Launch<Tile128x96Parts2<T, T>, Epilogue::kResidual>;
    case ClusterTile::k128x96Pair:
      return Launch<Tile128x96Pair<T, T>, Epilogue::kResidual>;
    default:
      return nullptr;
  }
}

// ... with a GELU...
template <typename T>
ClusterLauncher FindGeluLauncher(ClusterTile tile) {
  return tile == ClusterTile::k128x96Pair ? Launch<Tile128x96Pair<T, T>, Epilogue::kGelu> : nullptr;
}

// ... and of 8 bits.
template <typename Input, typename T>
ClusterLauncher FindScaledLauncher(ClusterTile tile) {
  switch (tile) {
    case ClusterTile::k64x64Parts4:
      return Launch<Tile64x64Parts4<Input, T>, Epilogue::kNone>;
    case ClusterTile::k64x64Parts2:
      return Launch<Tile64x64Parts2<Input, T>, Epilogue::kNone>;
    case ClusterTile::k64x96Pair:
      return Launch<Tile64x96Pair<Input, T>, Epilogue::kNone>;
    case ClusterTile::k128x96Pair:
      return Launch<Tile128x96Pair<Input, T>, Epilogue::kNone>;
    case ClusterTile::k128x144Pair:
      return Launch<Tile128x144Pair<Input, T>, Epilogue::kNone>;
    default:
      return nullptr;
  }
}

}  // namespace hopper_cluster
}  // namespace cuda
}  // namespace ft
