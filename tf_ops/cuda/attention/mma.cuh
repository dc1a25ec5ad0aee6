// Fused attention on tensor cores (mma.sync m16n8k16), for float16 and bfloat16, sm_80 and later.
// Included by mma_<head size>.cu, which instantiate it.
//
// Source: "FlashAttention-2" (Dao, 2023), algorithm 1: scores never leave the multiprocessor, the
// softmax is kept up to date with a running maximum and sum per query row.
#pragma once

#include <type_traits>

#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/integers.cuh"

namespace ft {
namespace cuda {

// A block of kWarps warps owns 16 * kRowTiles * kWarps query rows of one head; a warp owns 16 *
// kRowTiles of them, with queries, scores and the output in registers. Keys and values come in
// tiles of kKeys, two tiles deep, by cp.async. Rows in shared memory are kD + 8 elements apart, so
// ldmatrix meets no bank conflict. Head sizes below kD are filled with zeros. float32 scores,
// softmax and output sums.
template <typename T, int kD, int kRowTiles, int kWarps, int kKeys>
__global__ void __launch_bounds__(32 * kWarps) AttentionMmaKernel(const AttentionParams p) {
#if __CUDA_ARCH__ >= 800
  constexpr int kRows = 16 * kRowTiles * kWarps;
  constexpr int kPitch = kD + 8, kChunks = kD / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  T* shared_q = reinterpret_cast<T*>(shared);
  T* shared_k = shared_q + kRows * kPitch;      // two tiles
  T* shared_v = shared_k + 2 * kKeys * kPitch;  // two tiles

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const auto [first_row, head, sequence] = GetBlockPlace(p, kRows);

  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  if (first_row >= range.rows) return;

  const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
  const T* q = static_cast<const T*>(p.qkv) + range.first * 3 * hidden + head * p.head_size;
  const auto load = [&](auto count, const T* source, int row0, int limit, T* target) {
    ForEachChunk<32 * kWarps, count, kChunks>(thread, [&](int r, int c) {
      const bool valid = row0 + r < limit && c * 8 < p.head_size;
      CopyAsync16(target + r * kPitch + c * 8,
                  valid ? source + (row0 + r) * 3 * hidden + c * 8 : source, valid);
    });
  };
  const auto load_keys = [&](const T* source, int row0, T* target) {
    load(std::integral_constant<int, kKeys>(), source, row0, range.keys, target);
  };
  load(std::integral_constant<int, kRows>(), q, first_row, range.rows, shared_q);
  load_keys(q + hidden, 0, shared_k);
  load_keys(q + 2 * hidden, 0, shared_v);
  CommitCopies();

  constexpr int kColTiles = kD / 8;
  float out[kRowTiles][kColTiles][4] = {};
  float row_max[kRowTiles][2], row_sum[kRowTiles][2];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    row_max[i][0] = row_max[i][1] = -INFINITY;
    row_sum[i][0] = row_sum[i][1] = 0.f;
  }
  uint32_t query[kRowTiles][kD / 16][4];
  const int warp_row = warp * 16 * kRowTiles;
  const bool active = first_row + warp_row < range.rows;  // this warp has rows
  constexpr float kLog2e = 1.4426950408889634f;

  const int num_tiles = (range.keys + kKeys - 1) / kKeys;
  for (int t = 0; t < num_tiles; ++t) {
    WaitCopies<0>();
    __syncthreads();
    if (t + 1 < num_tiles) {
      const int next = (t + 1) % 2 * kKeys * kPitch;
      load_keys(q + hidden, (t + 1) * kKeys, shared_k + next);
      load_keys(q + 2 * hidden, (t + 1) * kKeys, shared_v + next);
      CommitCopies();
    }
    if (!active) continue;
    if (t == 0) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int c = 0; c < kD / 16; ++c) {
          LoadMatrices(query[i][c],
                       SharedAddress(shared_q + (warp_row + i * 16 + lane % 16) * kPitch + c * 16 +
                                     lane / 16 * 8));
        }
      }
    }
    const T* tile_k = shared_k + t % 2 * kKeys * kPitch;
    const T* tile_v = shared_v + t % 2 * kKeys * kPitch;

    float score[kRowTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 2) {
#pragma unroll
      for (int c = 0; c < kD / 16; ++c) {
        uint32_t key[4];
        LoadMatrices(key, SharedAddress(tile_k + (j * 8 + lane % 8 + lane / 16 * 8) * kPitch +
                                        c * 16 + lane / 8 % 2 * 8));
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          MultiplyAdd<T>(score[i][j], query[i][c], key[0], key[1]);
          MultiplyAdd<T>(score[i][j + 1], query[i][c], key[2], key[3]);
        }
      }
    }

    // Scores times log2(e)/sqrt(D), so that 2^x serves below.
    float scale = p.scale * kLog2e;
    if (p.mask != nullptr) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = min(first_row + warp_row + i * 16 + lane / 4 + h * 8, p.max_seq_len - 1);
          const T* mask_row =
              static_cast<const T*>(p.mask) +
              (static_cast<int64_t>(sequence) * p.max_seq_len + row) * p.max_seq_len;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int key = t * kKeys + j * 8 + lane % 4 * 2 + e;
              const float m = key < range.keys ? ToFloat(mask_row[key]) : 1.f;
              float& s = score[i][j][h * 2 + e];
              s = s * scale + (1.f - m) * (-10000.f * kLog2e);
            }
          }
        }
      }
      scale = 1.f;
    }
    if ((t + 1) * kKeys > range.keys) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (t * kKeys + j * 8 + lane % 4 * 2 + e >= range.keys) {
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i) score[i][j][e] = score[i][j][2 + e] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = row_max[i][h];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
          largest = fmaxf(largest, fmaxf(score[i][j][h * 2], score[i][j][h * 2 + 1]));
        }
        largest = WarpMax<4>(largest);
        const float reference = SoftmaxReference(largest);
        const float correction = FastExp2((row_max[i][h] - reference) * scale);
        row_max[i][h] = largest;
        const float shift = -reference * scale;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[i][j][h * 2 + e];
            s = FastExp2(fmaf(s, scale, shift));
            sum += s;
          }
        }
        row_sum[i][h] = row_sum[i][h] * correction + sum;
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          out[i][c][h * 2] *= correction;
          out[i][c][h * 2 + 1] *= correction;
        }
      }
    }

#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t weight[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        weight[i][0] = ToPair<T>(score[i][2 * j][0], score[i][2 * j][1]);
        weight[i][1] = ToPair<T>(score[i][2 * j][2], score[i][2 * j][3]);
        weight[i][2] = ToPair<T>(score[i][2 * j + 1][0], score[i][2 * j + 1][1]);
        weight[i][3] = ToPair<T>(score[i][2 * j + 1][2], score[i][2 * j + 1][3]);
      }
#pragma unroll
      for (int c = 0; c < kColTiles; c += 2) {
        uint32_t value[4];
        LoadMatricesTransposed(
            value, SharedAddress(tile_v + (j * 16 + lane % 16) * kPitch + c * 8 + lane / 16 * 8));
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          MultiplyAdd<T>(out[i][c], weight[i], value[0], value[1]);
          MultiplyAdd<T>(out[i][c + 1], weight[i], value[2], value[3]);
        }
      }
    }
  }

  // The output goes through the warp's own rows of shared_q, so that stores are 16 bytes wide, or
  // eight integers. The branch is the same for all threads.
  WaitCopies<0>();
  __syncthreads();
  if (!active) return;
  const bool to_integers = p.out_scale != nullptr;
  const float out_scale = to_integers ? *p.out_scale : 1.f;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = WarpSum<4>(row_sum[i][h]);
      const float inverse = SoftmaxInverse(sum, range.keys);
      T* to = shared_q + (warp_row + i * 16 + lane / 4 + h * 8) * kPitch;
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
        const float x = out[i][c][h * 2] * inverse, y = out[i][c][h * 2 + 1] * inverse;
        const int column = c * 8 + lane % 4 * 2;
        if (to_integers) {
          *reinterpret_cast<uint16_t*>(reinterpret_cast<int8_t*>(to) + column) =
              PackPair(p.to_float8, x * out_scale, y * out_scale);
        } else {
          *reinterpret_cast<uint32_t*>(to + column) = ToPair<T>(x, y);
        }
      }
    }
  }
  __syncwarp();
  const int64_t output = range.first * hidden + head * p.head_size;
  for (int i = lane; i < 16 * kRowTiles * kChunks; i += 32) {
    const int r = warp_row + i / kChunks, c = i % kChunks * 8;
    if (first_row + r >= range.rows || c >= p.head_size) continue;
    const int64_t at = output + (first_row + r) * hidden + c;
    const T* from = shared_q + r * kPitch;
    if (to_integers) {
      *reinterpret_cast<uint2*>(static_cast<int8_t*>(p.output) + at) =
          *reinterpret_cast<const uint2*>(reinterpret_cast<const int8_t*>(from) + c);
    } else {
      *reinterpret_cast<uint4*>(static_cast<T*>(p.output) + at) =
          *reinterpret_cast<const uint4*>(from + c);
    }
  }
#endif
}

template <typename T, int kD, int kRowTiles, int kWarps, int kKeys>
Status LaunchMma(AttentionParams params, const LaunchContext& context) {
  constexpr int kRows = 16 * kRowTiles * kWarps;
  params.row_tiles = (params.max_seq_len + kRows - 1) / kRows;
  const int64_t blocks =
      static_cast<int64_t>(params.row_tiles) * params.num_heads * params.batch_size;
  return Launch(AttentionMmaKernel<T, kD, kRowTiles, kWarps, kKeys>, Grid{blocks}, 32 * kWarps,
                MmaSharedBytes(kD, kRows, kKeys), context, params);
}

template <int kD>
Status LaunchMmaHeadSize(DataType dtype, int rows_per_block, const AttentionParams& params,
                         const LaunchContext& context) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    if (rows_per_block == 32) return LaunchMma<T, kD, 1, 2, 32>(params, context);
    if (rows_per_block == 64) return LaunchMma<T, kD, 1, 4, 64>(params, context);
    return LaunchMma<T, kD, 2, 4, 64>(params, context);
  };
  return dtype == DataType::kFloat16 ? launch(half()) : launch(__nv_bfloat16());
}

}  // namespace cuda
}  // namespace ft
