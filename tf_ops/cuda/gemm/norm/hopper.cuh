// Products with bias, residual and layer norm in one kernel for Hopper. Included by
// hopper_norm_*.cu; compiled for sm_90a alone.
//
// A few blocks that run at the same time have all columns of their rows, so that what a row sums to
// crosses from block to block, and the activations go through memory once instead of three times.
// Source of the statistics: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
// for computing sample variances" (1979): each block sums the squares of the differences from its
// own mean, so that nothing cancels however large the mean is, and there is one exchange.
#pragma once

#include <algorithm>
#include <type_traits>

#include "tf_ops/cuda/gemm/hopper.cuh"
#include "tf_ops/cuda/gemm/norm/hopper.h"

namespace ft {
namespace cuda {
namespace hopper_norm {

// Sizes of one instance. A block computes up to kRows rows and kColumns columns, with a warpgroup
// for 64 rows and one for the copies, which fill a ring of kStages stages of 128 bytes of each row
// of x and w; the residual comes through the same ring. The kClusterColumns blocks of a cluster
// have the same rows, which they fetch for each other. All columns are those of kGroupClusters
// clusters:
//  1: blocks put what their part of a row sums to into each other's shared memory.
//  2: they exchange it through device memory. Clusters of two blocks fit on all multiprocessors,
//     where those of four leave some idle; a group waits longer for its sums.
template <typename Input_, typename T_, int kRows_, int kColumns_, int kClusterColumns_,
          int kStages_, int kGroupClusters_ = 1>
struct NormGemm {
  using Input = Input_;
  using T = T_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kClusterColumns = kClusterColumns_, kGroupClusters = kGroupClusters_;
  static constexpr int kGroupColumns = kClusterColumns * kGroupClusters;  // blocks
  static constexpr int kHidden = kColumns * kGroupColumns;
  using Product = TileProduct<Input, kColumns>;

  static constexpr int kWarpgroups = kRows / kUnitRows, kThreads = (kWarpgroups + 1) * 128;
  // All of a multiprocessor's registers; less than that need not be handed round.
  static constexpr int kCopyRegisters = kWarpgroups == 3 ? 32 : 40;
  static constexpr int kRegisters = kWarpgroups == 3 ? 160 : 232;
  static constexpr bool kHandsRegisters = kWarpgroups > 1;

  static constexpr int kRowBytes = kStageRowBytes;
  static constexpr int kStageK = kRowBytes / sizeof(Input);
  static constexpr int kXBytes = kRows * kRowBytes, kWBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  // The residual lies where a stage has x, in panels of one swizzle's columns.
  static constexpr int kPanelBytes = kColumns % 64 == 0 ? 128 : 64, kPanelColumns = kPanelBytes / 2;
  static constexpr int kPanels = kColumns / kPanelColumns;
  static constexpr int kStagePanels = kRowBytes / kPanelBytes;
  static constexpr int kResidualStages = (kPanels + kStagePanels - 1) / kStagePanels;

  // Two buffers of what a row's parts sum to: a block may be a tile ahead of another.
  static constexpr int kSumsOffset = kStages * kStageBytes;
  static constexpr int kSumsBytes = kGroupClusters > 1 ? 0 : kRows* kClusterColumns * 8;
  static constexpr int kVectorOffset = kSumsOffset + 2 * kSumsBytes;
  static constexpr int kScaleOffset = kVectorOffset + 3 * kColumns * 2;
  static constexpr int kBarrierOffset = kScaleOffset + kColumns * 4;
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kStages + 2 * kWarpgroups * 4) * 8;

  static_assert(kUnitRows % (8 * kClusterColumns) == 0,
                "the parts that blocks fetch for each other are whole swizzles");
  static_assert(kGroupClusters == 1 || kGroupColumns == 4,
                "lanes of a quad read what a block each has sent");
  static_assert(kColumns % 32 == 0 && kVectorOffset % 16 == 0 && kBarrierOffset % 8 == 0, "layout");
};

template <typename T, typename Input>
struct NormGemmParams {
  int rows, num_units, num_stages;  // units of 64 rows; stages of k
  const float* scale;
  const T *bias, *gamma, *beta;
  float epsilon;
  T* output;
  Input* quantized;
  const float* quantized_scale;
  uint64_t *sums, *next_sums;  // with kGroupClusters > 1 alone
};

// The rows of a warpgroup from the sums of a product on. Lane 4g + t of warp w holds rows 16w + g
// and 16w + g + 8, and of each 8 columns number 2t and 2t + 1: x[4j + 2h + c] is row 16w + g + 8h,
// column 8j + 2t + c.
template <typename C>
struct TileRows {
  using T = typename C::T;

  int lane, warp_row;  // the warp's 16 rows in the block's
  float x[C::kColumns / 2];
  float sum[2], mean[2];  // of the block's columns

  // What products add up in: the same registers, as integers where those are multiplied.
  __device__ __forceinline__ auto& products() {
    return reinterpret_cast<typename C::Product::Sum(&)[C::kColumns / 2]>(x);
  }

  // The products have been added up.
  __device__ __forceinline__ void Begin() {
    if constexpr (C::Product::kIntegers) {
#pragma unroll
      for (float& sum_bits : x) sum_bits = static_cast<float>(__float_as_int(sum_bits));
    }
    sum[0] = sum[1] = 0.f;
  }

  // Adds bias and the residual of columns 8j on, 16 of them; `residual` is as LoadMatrices gives
  // it.
  __device__ __forceinline__ void Add(int j, const uint32_t (&residual)[4], const T* bias,
                                      const float* scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = (j + i) * 8 + lane % 4 * 2;
      const float2 b = PairToFloats<T>(*reinterpret_cast<const uint32_t*>(bias + column));
      const float2 s = *reinterpret_cast<const float2*>(scale + column);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 r = PairToFloats<T>(residual[2 * i + h]);
        float* const y = x + 4 * (j + i) + 2 * h;
        y[0] = fmaf(y[0], s.x, b.x) + r.x;
        y[1] = fmaf(y[1], s.y, b.y) + r.y;
        sum[h] += y[0] + y[1];
      }
    }
  }

  // x becomes the differences from the mean of the block's columns; returns the sum of their
  // squares.
  __device__ __forceinline__ void Center(float (&squares)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      mean[h] = WarpSum<4>(sum[h]) / C::kColumns;  // exact where all are equal
      squares[h] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < C::kColumns / 2; ++i) {
      x[i] -= mean[i / 2 % 2];
      squares[i / 2 % 2] = fmaf(x[i], x[i], squares[i / 2 % 2]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) squares[h] = WarpSum<4>(squares[h]);
  }
};

// Units of a group's tile.
struct TileUnits {
  int first, count;
};

// The tiles of a group of blocks: groups share the units evenly, and a group's tiles its units.
template <int kMaxUnits>
struct GroupTiles {
  int begin, num_units, num_tiles;

  __device__ __forceinline__ GroupTiles(int units, int group, int groups) {
    const auto start = [&](int i) {
      return static_cast<int>(static_cast<int64_t>(units) * i / groups);
    };
    begin = start(group);
    num_units = start(group + 1) - begin;
    num_tiles = (num_units + kMaxUnits - 1) / kMaxUnits;
  }

  __device__ __forceinline__ TileUnits operator[](int tile) const {
    const int first = tile * num_units / num_tiles;
    return {begin + first, (tile + 1) * num_units / num_tiles - first};
  }
};

// What a thread knows of its two rows when all blocks' sums have come: what to add to the
// differences from the block's mean, and then to multiply by.
struct RowFactors {
  float shift[2], factor[2];
};

constexpr uint64_t kNoSums = ~uint64_t{0};  // nothing has come yet

// Exchanges the mean and the sum of squares of a block's columns with the group's other blocks, by
// device memory: `sums` and `next_sums` are of the thread's first row, sums[4 * row + block]. What
// is there is kNoSums until it has come. The sums of the next launch are cleared: nobody reads
// those of the launch before this one any more.
//
// The blocks of a group are neighbours in the grid, and blocks start in its order. So of all groups
// only the last one to have started can wait for blocks that have not, and others end before it.
template <typename C>
__device__ __forceinline__ RowFactors ExchangeByMemory(const float (&mean)[2],
                                                       const float (&squares)[2], int block,
                                                       int lane, float epsilon, uint64_t* sums,
                                                       uint64_t* next_sums) {
  constexpr int kSecondRow = 8 * 4;
  const int part = lane % 4;
  if (part < 2) {
    const int at = part * kSecondRow + block;
    // No sign, also where it is NaN: kNoSums has one.
    const uint64_t high = __float_as_uint(part == 0 ? squares[0] : squares[1]) & 0x7fffffffu;
    const uint64_t mine = high << 32 | __float_as_uint(part == 0 ? mean[0] : mean[1]);
    // Both numbers come at once, and nothing else has to.
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;\n" ::"l"(sums + at), "l"(mine) : "memory");
    next_sums[at] = kNoSums;
  }
  __syncwarp();
  uint64_t got[2];
  do {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];\n"
                   : "=l"(got[h])
                   : "l"(sums + h * kSecondRow + part)
                   : "memory");
    }
  } while (got[0] == kNoSums || got[1] == kNoSums);
  __syncwarp();
  RowFactors result;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float part_mean = __uint_as_float(static_cast<uint32_t>(got[h]));
    const float part_squares = __uint_as_float(static_cast<uint32_t>(got[h] >> 32));
    const float all = WarpSum<4>(part_mean) * (1.f / 4);
    const float between = (part_mean - all) * (part_mean - all) * C::kColumns;
    result.shift[h] = mean[h] - all;
    result.factor[h] = rsqrtf(WarpSum<4>(part_squares + between) * (1.f / C::kHidden) + epsilon);
  }
  return result;
}

// The same by shared memory. `sums` and `counts` are addresses there: of the thread's first row,
// sums + 8 * (row * kClusterColumns + block), and of the warp's barrier; `sums_here` is what the
// former points to.
template <typename C>
__device__ __forceinline__ RowFactors ExchangeByCluster(const float (&mean)[2],
                                                        const float (&squares)[2], int block,
                                                        int lane, float epsilon, uint32_t sums,
                                                        const float2* sums_here, uint32_t counts,
                                                        int parity) {
  constexpr int kBlocks = C::kClusterColumns, kSecondRow = 8 * kBlocks;
  if (lane == 0) ArriveExpectBytes(counts, 16 * kBlocks * 8);
#pragma unroll
  for (int to = lane % 4; to < kBlocks; to += 4) {
    const uint32_t remote = MapToBlock(counts, to);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      StoreRemote(MapToBlock(sums + (h * kSecondRow + block) * 8, to), mean[h], squares[h], remote);
    }
  }
  WaitBarrier(counts, parity);
  __syncwarp();
  RowFactors result;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float2 part[kBlocks];
    float all = 0.f, total = 0.f;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      part[i] = sums_here[h * kSecondRow + i];
      all += part[i].x;
      total += part[i].y;
    }
    all *= 1.f / kBlocks;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      total = fmaf((part[i].x - all) * (part[i].x - all), C::kColumns, total);
    }
    result.shift[h] = mean[h] - all;
    result.factor[h] = rsqrtf(total * (1.f / C::kHidden) + epsilon);
  }
  return result;
}

// A block's columns stay; its group goes from tile to tile of rows. In a tile of fewer units than
// the block has warpgroups the last ones only let the stages pass.
template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    NormGemmKernel(const NormGemmParams<typename C::T, typename C::Input> p,
                   const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ CUtensorMap residual_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename C::T;
  constexpr int kStages = C::kStages, kWarps = C::kWarpgroups * 4;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = SharedAddress(shared);
  const auto barrier = [&](int i) { return base + C::kBarrierOffset + i * 8; };
  const auto full = [&](int slot) { return barrier(slot); };
  const auto empty = [&](int slot) { return barrier(kStages + slot); };
  const auto arrived = [&](int buffer, int warp) {
    return barrier(2 * kStages + buffer * kWarps + warp);
  };
  const auto x_stage = [&](int slot) { return base + slot * C::kStageBytes; };
  const auto w_stage = [&](int slot) { return x_stage(slot) + C::kXBytes; };
  T* const vectors = reinterpret_cast<T*>(shared + C::kVectorOffset);  // bias, gamma, beta
  float* const scales = reinterpret_cast<float*>(shared + C::kScaleOffset);

  // The grid is [clusters of each group and groups] x [blocks of a cluster].
  const int rank = blockIdx.y;
  const GroupTiles<C::kWarpgroups> tiles(p.num_units, blockIdx.x / C::kGroupClusters,
                                         gridDim.x / C::kGroupClusters);
  const int block = blockIdx.x % C::kGroupClusters * C::kClusterColumns + rank;  // of the group
  const int first_column = block * C::kColumns;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

  AllowNextKernel();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      InitBarrier(full(slot), 1);
      // This block's copies go to all of the cluster.
      InitBarrier(empty(slot), C::kClusterColumns * C::kWarpgroups);
    }
    for (int i = 0; i < 2 * kWarps; ++i) InitBarrier(arrived(0, i), 1);
    FenceBarrierInit();
  }
  for (int i = threadIdx.x; i < C::kColumns; i += C::kThreads) {
    vectors[i] = p.bias[first_column + i];
    vectors[C::kColumns + i] = p.gamma[first_column + i];
    vectors[2 * C::kColumns + i] = p.beta[first_column + i];
    scales[i] = p.scale[first_column + i];
  }
  __syncthreads();
  SyncCluster();

  RingPlace<kStages> place;
  if (warp >= kWarps) {
    if constexpr (C::kHandsRegisters) GiveRegisters<C::kCopyRegisters>();
    if (warp == kWarps && lane == 0) {
      // Each block fetches its part of the rows of x for all.
      constexpr int kPart = kUnitRows / C::kClusterColumns;
      constexpr uint16_t kAllBlocks = (1 << C::kClusterColumns) - 1;
      const auto copy_x = [&](int slot, const TileUnits& tile, int k) {
        for (int unit = 0; unit < tile.count; ++unit) {
          const int row = unit * kUnitRows + rank * kPart;
          CopyBoxTo(kAllBlocks, x_stage(slot) + row * C::kRowBytes, &x_map, k * C::kStageK,
                    tile.first * kUnitRows + row, full(slot));
        }
      };
      const auto copy_w = [&](int slot, int k) {
        CopyBox(w_stage(slot), &w_map, k * C::kStageK, first_column, full(slot));
      };
      const auto expect_stage = [&](int slot, const TileUnits& tile) {
        ArriveExpectBytes(full(slot), tile.count * kUnitRows * C::kRowBytes + C::kWBytes);
      };
      // Weights do not wait for the previous kernel.
      const int ahead = min(kStages, p.num_stages);
      for (int k = 0; k < ahead; ++k) {
        expect_stage(k, tiles[0]);
        copy_w(k, k);
      }
      WaitForPreviousKernel();
      for (int i = 0; i < tiles.num_tiles; ++i) {
        const TileUnits tile = tiles[i];
        const auto each_residual = [&](int panel, const auto& function) {
          for (int unit = 0; unit < tile.count; ++unit) {
            function(unit, first_column + panel * C::kPanelColumns,
                     (tile.first + unit) * kUnitRows);
          }
        };
        for (int panel = 0; panel < C::kPanels; ++panel) {
          each_residual(panel,
                        [&](int, int column, int row) { PrefetchBox(&residual_map, column, row); });
        }
        for (int k = 0; k < p.num_stages; ++k) {
          if (i > 0 || k >= ahead) {
            WaitBarrier(empty(place.slot), place.parity ^ 1);
            expect_stage(place.slot, tile);
            copy_w(place.slot, k);
          }
          copy_x(place.slot, tile, k);
          place.Advance();
        }
        for (int stage = 0; stage < C::kResidualStages; ++stage) {
          const int panels = min(C::kStagePanels, C::kPanels - stage * C::kStagePanels);
          WaitBarrier(empty(place.slot), place.parity ^ 1);
          ArriveExpectBytes(full(place.slot), panels * tile.count * kUnitRows * C::kPanelBytes);
          for (int j = 0; j < panels; ++j) {
            each_residual(stage * C::kStagePanels + j, [&](int unit, int column, int row) {
              CopyBox(x_stage(place.slot) + (j * C::kRows + unit * kUnitRows) * C::kPanelBytes,
                      &residual_map, column, row, full(place.slot));
            });
          }
          place.Advance();
        }
      }
      WaitForEmptyRing(empty, &place);
    }
  } else {
    if constexpr (C::kHandsRegisters) TakeRegisters<C::kRegisters>();
    const int group = warp / 4;
    TileRows<C> rows;
    rows.lane = lane;
    rows.warp_row = warp * 16;
    // Lane i of a warpgroup's first warp tells block i that a slot has been read.
    const bool tells = warp % 4 == 0 && lane < C::kClusterColumns;
    const auto release = [&](int slot) {
      if (tells) ArriveRemote(MapToBlock(empty(slot), lane));
    };
    const float quantized_scale = p.quantized != nullptr ? *p.quantized_scale : 1.f;

    int count = 0;  // of this warpgroup's exchanges
    for (int i = 0; i < tiles.num_tiles; ++i) {
      const TileUnits tile = tiles[i];
      if (group >= tile.count) {
        for (int k = 0; k < p.num_stages + C::kResidualStages; ++k) {
          if (warp % 4 == 0) {
            WaitBarrier(full(place.slot), place.parity);
            release(place.slot);
          }
          place.Advance();
        }
        SyncWarpgroup(1 + group);  // no warp may wait for a phase two behind the barrier's
        continue;
      }
      release(MultiplyStages(
          p.num_stages, rows.products(), full, release, &place, [&](int k, int slot) {
            C::Product::AddStage(x_stage(slot) + group * kUnitRows * C::kRowBytes, w_stage(slot),
                                 rows.products(), k == 0);
          }));

      rows.Begin();
      const RingPlace<kStages> residual = place;
#pragma unroll
      for (int stage = 0; stage < C::kResidualStages; ++stage) {
        WaitBarrier(full(place.slot), place.parity);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < C::kStagePanels; ++i) {
          const int panel = stage * C::kStagePanels + i;
          if (panel >= C::kPanels) continue;
#pragma unroll
          for (int chunk = 0; chunk < C::kPanelBytes / 16; chunk += 2) {
            const int row = rows.warp_row + lane % 16;
            uint32_t r[4];
            LoadMatrices(r, x_stage(place.slot) + (i * C::kRows + row) * C::kPanelBytes +
                                SwizzledChunk<C::kPanelBytes>(row, chunk + lane / 16) * 16);
            rows.Add(panel * C::kPanelColumns / 8 + chunk, r, vectors, scales);
          }
        }
        place.Advance();
      }
      SyncWarpgroup(1 + group);
      RingPlace<kStages> read = residual;
#pragma unroll
      for (int stage = 0; stage < C::kResidualStages; ++stage) {
        release(read.slot);
        read.Advance();
      }

      float squares[2];
      rows.Center(squares);
      const int block_row = rows.warp_row + lane / 4, row = tile.first * kUnitRows + block_row;
      RowFactors factors;
      if constexpr (C::kGroupClusters > 1) {
        const int64_t at = static_cast<int64_t>(row) * C::kGroupColumns;
        factors = ExchangeByMemory<C>(rows.mean, squares, block, lane, p.epsilon, p.sums + at,
                                      p.next_sums + at);
      } else {
        const int at =
            C::kSumsOffset + count % 2 * C::kSumsBytes + block_row * C::kClusterColumns * 8;
        factors = ExchangeByCluster<C>(rows.mean, squares, block, lane, p.epsilon, base + at,
                                       reinterpret_cast<const float2*>(shared + at),
                                       arrived(count % 2, warp), count / 2 % 2);
      }
      ++count;

      const T *const gamma = vectors + C::kColumns, *const beta = gamma + C::kColumns;
#pragma unroll
      for (int g = 0; g < C::kColumns / 32; ++g) {
        uint32_t pairs[2][4];
        uint32_t bytes[2][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = 4 * g + i, column = 8 * j + lane % 4 * 2;
          const float2 a = PairToFloats<T>(*reinterpret_cast<const uint32_t*>(gamma + column));
          const float2 b = PairToFloats<T>(*reinterpret_cast<const uint32_t*>(beta + column));
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float* const from = rows.x + 4 * j + 2 * h;
            const float y0 = fmaf((from[0] + factors.shift[h]) * factors.factor[h], a.x, b.x);
            const float y1 = fmaf((from[1] + factors.shift[h]) * factors.factor[h], a.y, b.y);
            pairs[h][i] = ToPair<T>(y0, y1);
            const uint32_t two =
                PackPair(!C::Product::kIntegers, y0 * quantized_scale, y1 * quantized_scale);
            bytes[h][i / 2] = i % 2 == 0 ? two : bytes[h][i / 2] | two << 16;
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          TransposeQuad(pairs[h], lane);
          const int64_t at =
              static_cast<int64_t>(row + 8 * h) * C::kHidden + first_column + 32 * g + lane % 4 * 8;
          const uint2 quantized = TransposeQuad(bytes[h][0], bytes[h][1], lane);
          if (row + 8 * h >= p.rows) continue;
          *reinterpret_cast<uint4*>(p.output + at) =
              uint4{pairs[h][0], pairs[h][1], pairs[h][2], pairs[h][3]};
          if (p.quantized != nullptr) *reinterpret_cast<uint2*>(p.quantized + at) = quantized;
        }
      }
    }
  }
#endif
}

// Groups of blocks that the current device runs at a time.
template <typename C>
Status CountGroups(const LaunchContext& context, int* groups) {
  const void* const kernel = reinterpret_cast<const void*>(NormGemmKernel<C>);
  KernelTraits traits;
  cudaLaunchConfig_t config = {};
  FT_RETURN_IF_ERROR(GetKernelTraits(kernel, context, &traits));
  FT_RETURN_IF_ERROR(ConfigureLaunch(traits, Grid{1, C::kClusterColumns}, C::kThreads,
                                     C::kSharedBytes, context, &config));
  cudaLaunchAttribute cluster = ClusterAttribute({1, C::kClusterColumns});
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters;
  FT_RETURN_IF_ERROR(GetMaxActiveClusters(kernel, config, context, &clusters));
  *groups = clusters / C::kGroupClusters;
  return OkStatus();
}

template <typename C>
Status Launch(const NormGemmArgs& args, const LaunchContext& context) {
  using T = typename C::T;
  using Input = typename C::Input;
  CUtensorMap x_map, w_map, residual_map;
  FT_RETURN_IF_ERROR(MakeRowMap<Input>(args.x, args.rows, args.k, kUnitRows / C::kClusterColumns,
                                       C::kRowBytes, &x_map));
  FT_RETURN_IF_ERROR(MakeRowMap<Input>(args.w, args.n, args.k, C::kColumns, C::kRowBytes, &w_map));
  FT_RETURN_IF_ERROR(
      MakeRowMap<T>(args.residual, args.rows, args.n, kUnitRows, C::kPanelBytes, &residual_map));
  const int64_t units = (args.rows + kUnitRows - 1) / kUnitRows;
  const NormGemmParams<T, Input> params = {static_cast<int>(args.rows),
                                           static_cast<int>(units),
                                           static_cast<int>((args.k + C::kStageK - 1) / C::kStageK),
                                           args.scale,
                                           static_cast<const T*>(args.bias),
                                           static_cast<const T*>(args.gamma),
                                           static_cast<const T*>(args.beta),
                                           args.epsilon,
                                           static_cast<T*>(args.output),
                                           static_cast<Input*>(args.quantized),
                                           args.quantized_scale,
                                           static_cast<uint64_t*>(args.sums),
                                           static_cast<uint64_t*>(args.next_sums)};
  int groups;
  FT_RETURN_IF_ERROR(CountGroups<C>(context, &groups));
  if (groups == 0) {
    return Internal("not even ", C::kGroupClusters, " clusters of ", C::kClusterColumns,
                    " blocks fit this device");
  }
  // No more groups than let the busiest one have the same work: each reads all weights.
  const int64_t group_units = (units + groups - 1) / groups;
  const Grid grid = {C::kGroupClusters * ((units + group_units - 1) / group_units),
                     C::kClusterColumns};
  return LaunchClusters(NormGemmKernel<C>, grid, {1, C::kClusterColumns}, C::kThreads,
                        C::kSharedBytes, context, params, x_map, w_map, residual_map);
}

// Calls `function` with the instance of a kind: the tiles that were fastest on an H200
// (benchmarks/gpu_profile.md).
template <typename Input, typename T, typename Function>
Status WithKind(int64_t n, NormGemmKind kind, const Function& function) {
  const bool is_cluster = kind == NormGemmKind::kCluster;
  if (n == 768) {
    return is_cluster ? function(NormGemm<Input, T, 192, 192, 4, 4>())
                      : function(NormGemm<Input, T, 192, 192, 2, 4, 2>());
  }
  if (n == 1024) {
    return is_cluster ? function(NormGemm<Input, T, 192, 128, 8, 5>())
                      : function(NormGemm<Input, T, 128, 256, 2, 4, 2>());
  }
  return Internal("no product with a layer norm has ", n, " columns");
}

// The functions of HopperNorm.
template <typename Input, typename T>
constexpr HopperNorm kFunctions = {
    [](const NormGemmArgs& args, NormGemmKind kind, const LaunchContext& context) {
      return WithKind<Input, T>(
          args.n, kind, [&](auto instance) { return Launch<decltype(instance)>(args, context); });
    },
    [](const NormGemmArgs& args, NormGemmKind kind, const LaunchContext& context,
       NormGroups* groups) {
      return WithKind<Input, T>(args.n, kind, [&](auto instance) {
        groups->block_columns = instance.kColumns;
        return CountGroups<decltype(instance)>(context, &groups->count);
      });
    }};

}  // namespace hopper_norm
}  // namespace cuda
}  // namespace ft
