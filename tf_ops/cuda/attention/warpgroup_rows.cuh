// The query rows of one warpgroup and their softmax, for the attention kernels on Hopper's tensor
// cores (wgmma, sm_90a), float16 and bfloat16 without mask.
//
// Source: "FlashAttention-3" (Shah et al., 2024), section 3: the softmax of one tile under the
// products of another. Sums are kept relative to a reference that may be a little less than the
// maximum, which is as exact and seldom has to move (an idea of FlashAttention-4).
#pragma once

#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/hopper.cuh"
#include "tf_ops/cuda/integers.cuh"
#include "tf_ops/cuda/tensor_map.h"

namespace ft {
namespace cuda {

// Sizes of one instance. kGroups warpgroups own 64 query rows each; keys and values come in kStages
// tiles of kKeys; kBlocks blocks share a multiprocessor (a bound on registers). kQueryRegisters:
// the first product takes the queries from registers, which leaves shared memory to keys and
// values: with 64 keys a tile it would else ask for as many bytes as there are.
template <typename Type, int kHeadSize, int kWarpgroups, int kTileKeys, int kTiles, int kMinBlocks,
          bool kRegisters>
struct WgmmaConfig {
  using T = Type;
  static constexpr int kD = kHeadSize, kGroups = kWarpgroups, kKeys = kTileKeys, kStages = kTiles,
                       kBlocks = kMinBlocks;
  static constexpr bool kQueryRegisters = kRegisters;
  // The widest swizzle that divides a head: rows of 128 or 64 bytes, side by side as panels.
  static constexpr int kRowBytes = kD % 64 == 0 ? 128 : 64;
  static constexpr int kPanelCols = kRowBytes / 2, kPanels = kD / kPanelCols;
  static constexpr int kBoxRows = 64;  // of one tensor copy
  static constexpr int kRows = 64 * kGroups, kThreads = 128 * kGroups;
  static constexpr int kQueryBytes = 64 * kD * 2, kTileBytes = kKeys * kD * 2;
  static constexpr int kTileOffset = kGroups * kQueryBytes;
  static constexpr int kBarrierOffset = kTileOffset + 2 * kStages * kTileBytes;
  static constexpr int kSharedBytes = kBarrierOffset + (1 + 3 * kStages) * 8;
};

// Lets the copy engine fetch `rows` rows, a multiple of C::kBoxRows, from `row` of qkv on, of
// query, key or value head `head` of the 3N, to `target`. `barrier` counts their bytes.
template <typename C>
__device__ __forceinline__ void CopyRows(uint32_t target, const CUtensorMap* qkv_map, int head,
                                         int row, int rows, uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < C::kPanels; ++panel) {
#pragma unroll
    for (int r = 0; r < rows; r += C::kBoxRows) {
      CopyBox(target + (panel * rows + r) * C::kRowBytes, qkv_map, panel * C::kPanelCols, head,
              row + r, barrier);
    }
  }
}

// The 64 query rows of a warpgroup: scores of a tile of keys, their weights, and the sums of
// weighted values. All in registers, so every loop over them is unrolled.
template <typename C>
struct WarpgroupRows {
  using T = typename C::T;
  static constexpr int kD = C::kD, kKeys = C::kKeys, kRowBytes = C::kRowBytes;

  int lane, warp_row;  // the warp's 16 rows of the warpgroup's
  float scale, slack;  // of scores, to powers of two; how far they may pass the reference
  float score[kKeys / 2];
  uint32_t query[C::kQueryRegisters ? kD / 16 : 1][4];
  uint32_t weight[kKeys / 16][4];
  float out[kD / 2];
  float reference[2], sum[2], correction[2];

  __device__ __forceinline__ WarpgroupRows(int warp, float score_scale)
      : lane(threadIdx.x % 32), warp_row(warp % 4 * 16) {
    constexpr float kLog2e = 1.4426950408889634f;
    scale = score_scale * kLog2e;  // scores times log2(e)/sqrt(D), so that 2^x serves
    slack = 8.f / scale;           // weights stay below 2^8
  }

  // Where 16 bytes of a row lie in the warpgroup's queries, later its output.
  static __device__ __forceinline__ int ChunkOffset(int row, int chunk) {
    constexpr int kChunks = kRowBytes / 16;
    return (chunk / kChunks * 64 + row) * kRowBytes +
           SwizzledChunk<kRowBytes>(row, chunk % kChunks) * 16;
  }

  // Before the first tile; the queries have come.
  __device__ __forceinline__ void Begin(uint32_t queries) {
#pragma unroll
    for (float& x : out) x = 0.f;
    reference[0] = reference[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
    if constexpr (C::kQueryRegisters) {
#pragma unroll
      for (int c = 0; c < kD / 16; ++c) {
        LoadMatrices(query[c], queries + ChunkOffset(warp_row + lane % 16, c * 2 + lane / 16));
      }
    }
  }

  // Starts scores = queries keys^T.
  __device__ __forceinline__ void StartScores(uint32_t queries, uint32_t key_tile) {
    if constexpr (C::kQueryRegisters) PinRegisters(query);
    FenceProducts();
#pragma unroll
    for (int c = 0; c < kD; c += 16) {
      const int panel = c / C::kPanelCols, offset = c % C::kPanelCols * 2;
      const uint64_t keys =
          MatrixDescriptor<kRowBytes>(key_tile + panel * kKeys * kRowBytes + offset, 16);
      if constexpr (C::kQueryRegisters) {
        WarpgroupProduct<T, kKeys>::template FromRegisters<0>(score, query[c / 16], keys, c != 0);
      } else {
        WarpgroupProduct<T, kKeys>::FromShared(
            score, MatrixDescriptor<kRowBytes>(queries + panel * 64 * kRowBytes + offset, 16), keys,
            c != 0);
      }
    }
    CommitProducts();
  }

  // Starts out += weights values.
  __device__ __forceinline__ void StartOutput(uint32_t values) {
    PinRegisters(out);
    PinRegisters(weight);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      WarpgroupProduct<T, kD>::template FromRegisters<1>(
          out, weight[k],
          MatrixDescriptor<kRowBytes>(values + k * 16 * kRowBytes, kKeys * kRowBytes), 1);
    }
    CommitProducts();
  }

  // Scores become weights 2^(score - reference), added to `sum`. True if a row of this warp got a
  // new reference; `correction` then holds what older sums and outputs are to be multiplied by.
  __device__ __forceinline__ bool Softmax(int keys_left) {
    if (keys_left < kKeys) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (j * 8 + lane % 4 * 2 + e >= keys_left) {
            score[j * 4 + e] = score[j * 4 + 2 + e] = -INFINITY;
          }
        }
      }
    }
    float largest[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = fmaxf(score[h * 2], score[h * 2 + 1]);
#pragma unroll
      for (int j = 1; j < kKeys / 8; ++j) {
        largest[h] = fmaxf(largest[h], fmaxf(score[j * 4 + h * 2], score[j * 4 + h * 2 + 1]));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) largest[h] = WarpMax<4>(largest[h]);
    const bool moved = __any_sync(
        0xffffffffu, largest[0] > reference[0] + slack || largest[1] > reference[1] + slack);
    if (moved) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float next = fmaxf(largest[h], reference[h]);
        // 0 in the first tile.
        correction[h] = FastExp2((reference[h] - SoftmaxReference(next)) * scale);
        reference[h] = next;
        sum[h] *= correction[h];
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float shift = -SoftmaxReference(reference[h]) * scale;
      float partial[2] = {0.f, 0.f};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[j * 4 + h * 2 + e];
          s = FastExp2(fmaf(s, scale, shift));
          partial[e] += s;
        }
      }
      sum[h] += partial[0] + partial[1];
    }
    return moved;
  }

  // Multiplies the outputs by the correction.
  __device__ __forceinline__ void Correct() {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) out[i] *= correction[i / 2 % 2];
  }

  // Weights in the products' type.
  __device__ __forceinline__ void Pack() {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[k][i] = ToPair<T>(score[k * 8 + i * 2], score[k * 8 + i * 2 + 1]);
      }
    }
  }

  // Stores the outputs of the rows that exist, as integers if `to_integers`. They go through the
  // warp's own rows of the queries at `staging`, which nothing reads any more, so that stores are
  // 16 bytes wide, or eight integers: half a chunk. The branch is the same for all threads.
  __device__ __forceinline__ void Store(const AttentionParams& p, const SequenceRange& range,
                                        int head, int first_row, bool to_integers, float out_scale,
                                        unsigned char* staging) {
    const auto integers_offset = [&](int row, int c) {
      return ChunkOffset(row, c / 2) + c % 2 * 8;
    };
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = WarpSum<4>(sum[h]);
      const float inverse = SoftmaxInverse(total, range.keys);
      const int row = warp_row + lane / 4 + h * 8;
#pragma unroll
      for (int c = 0; c < kD / 8; ++c) {
        const float x = out[c * 4 + h * 2] * inverse, y = out[c * 4 + h * 2 + 1] * inverse;
        if (to_integers) {
          *reinterpret_cast<uint16_t*>(staging + integers_offset(row, c) + lane % 4 * 2) =
              PackPair(p.to_float8, x * out_scale, y * out_scale);
        } else {
          *reinterpret_cast<uint32_t*>(staging + ChunkOffset(row, c) + lane % 4 * 4) =
              ToPair<T>(x, y);
        }
      }
    }
    __syncwarp();
    const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
    const int64_t output = (range.first + first_row) * hidden + head * p.head_size;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      const int r = warp_row + (i * 32 + lane) / (kD / 8), c = (i * 32 + lane) % (kD / 8);
      if (first_row + r >= range.rows || c * 8 >= p.head_size) continue;
      const int64_t at = output + r * hidden + c * 8;
      if (to_integers) {
        *reinterpret_cast<uint2*>(static_cast<int8_t*>(p.output) + at) =
            *reinterpret_cast<const uint2*>(staging + integers_offset(r, c));
      } else {
        *reinterpret_cast<uint4*>(static_cast<T*>(p.output) + at) =
            *reinterpret_cast<const uint4*>(staging + ChunkOffset(r, c));
      }
    }
  }
};

// Overwrites the values of a tile from row `valid` on with zeros: rows behind a sequence's end may
// hold NaN. By all threads of a warpgroup; every warpgroup writes all the zeros, so that none waits
// for another. `barrier` is the warpgroup's own.
template <typename C>
__device__ __forceinline__ void ClearValues(unsigned char* values, int valid, int barrier) {
#pragma unroll
  for (int panel = 0; panel < C::kPanels; ++panel) {
    unsigned char* const rows = values + panel * C::kKeys * C::kRowBytes;
    for (int i = valid * C::kRowBytes + threadIdx.x % 128 * 16; i < C::kKeys * C::kRowBytes;
         i += 128 * 16) {
      *reinterpret_cast<uint4*>(rows + i) = uint4{0, 0, 0, 0};
    }
  }
  FenceAsyncProxy();
  SyncWarpgroup(barrier);
}

// The map of qkv as [T][3N][D], in boxes of 64 rows of one head's panel: columns past D are zeros,
// so that head sizes below kD work.
inline Status MakeQkvMap(DataType dtype, const AttentionParams& p, int64_t num_tokens,
                         int panel_cols, int box_rows, CUtensorMap* map) {
  TensorBoxes<3> boxes;
  boxes.type = dtype == DataType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                           : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  boxes.data = p.qkv;
  const auto set = [&](int i, int64_t size, int64_t stride, int box) {
    boxes.sizes[i] = static_cast<cuuint64_t>(size);
    boxes.strides[i] = static_cast<cuuint64_t>(stride);
    boxes.box[i] = static_cast<cuuint32_t>(box);
  };
  const int64_t head_bytes = static_cast<int64_t>(p.head_size) * 2, heads = p.num_heads * 3;
  set(0, p.head_size, 2, panel_cols);
  set(1, heads, head_bytes, 1);
  set(2, num_tokens, head_bytes * heads, box_rows);
  boxes.swizzle = panel_cols == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  return MakeTensorMap(boxes, map);
}

}  // namespace cuda
}  // namespace ft
