// Fused float32 attention on tensor cores (mma.sync m16n8k16 of halves), sm_90, with
// float32's accuracy: numbers are split as gemm/split/split_gemm.h says. Included by
// attention/split_<head size>.cu, which instantiate it.
#pragma once

#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/split/split.cuh"
#include "tf_ops/cuda/integers.cuh"

namespace ft {
namespace cuda {

// What the weights of the softmax, at most 1, are multiplied by: see SplitScale.
constexpr float kWeightToHalves = 16384.f;

// x[kCount / 4][4] = the numbers of a row from `from` on, kStep apart.
template <int kCount, int kStep>
__device__ __forceinline__ void LoadFours(const float* from, float (&x)[kCount / 4][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    const float4 four = *reinterpret_cast<const float4*>(from + i * kStep);
    x[i][0] = four.x;
    x[i][1] = four.y;
    x[i][2] = four.z;
    x[i][3] = four.w;
  }
}

// A block of kWarps warps owns 16 * kWarps query rows of one head; a warp owns 16 of them, with
// queries, scores and the output in registers. Keys and values come as float32 in tiles of 64, by
// cp.async, each while the other is in use, and are split once for all warps. A query and a key
// have powers of two of their own, the values of a tile one. Rows in shared memory are kD + 8
// elements apart, so that nothing meets a bank conflict. Softmax and output sums are float32's, and
// what a tile adds to them is all that tensor cores add up. Running maximum and sum as in
// "FlashAttention-2" (Dao, 2023).
template <int kD, int kWarps>
__global__ void __launch_bounds__(32 * kWarps) AttentionSplitKernel(const AttentionParams p) {
#if __CUDA_ARCH__ >= 900
  constexpr int kThreads = 32 * kWarps, kRows = 16 * kWarps, kKeys = 64;
  constexpr int kPitch = kD + 8, kChunks = kD / 4, kColTiles = kD / 8, kBlocks = kD / 16;
  constexpr int kRowThreads = kThreads / kKeys;  // that split one row of keys or values
  constexpr float kLog2e = 1.4426950408889634f;
  extern __shared__ __align__(128) unsigned char shared[];
  float* raw_k = reinterpret_cast<float*>(shared);                 // [kKeys][kPitch]
  float* raw_v = raw_k + kKeys * kPitch;                           // [kKeys][kPitch]
  half* high_k = reinterpret_cast<half*>(raw_v + kKeys * kPitch);  // [kKeys][kPitch]
  half* low_k = high_k + kKeys * kPitch;
  half* high_v = low_k + kKeys * kPitch;
  half* low_v = high_v + kKeys * kPitch;
  __shared__ float key_scale[kKeys];
  __shared__ float scratch[kWarps];

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const auto [first_row, head, sequence] = GetBlockPlace(p, kRows);

  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  if (first_row >= range.rows) return;

  const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
  const float* q = static_cast<const float*>(p.qkv) + range.first * 3 * hidden + head * p.head_size;
  // Rows and columns outside become zeros.
  const auto load = [&](const float* source, int row0, float* target) {
    for (int i = thread; row0 < range.keys && i < kKeys * kChunks; i += kThreads) {
      const int r = i / kChunks, c = i % kChunks * 4;
      const bool valid = row0 + r < range.keys && c < p.head_size;
      CopyAsync16(target + r * kPitch + c, valid ? source + (row0 + r) * 3 * hidden + c : source,
                  valid);
    }
    CommitCopies();
  };
  load(q + hidden, 0, raw_k);
  load(q + 2 * hidden, 0, raw_v);

  const int warp_row = first_row + warp * 16;
  const bool active = warp_row < range.rows;  // this warp has rows
  // Queries: lane 4g+t has columns 2t, 2t+1, 2t+8 and 2t+9 of each block of 16, rows g and g+8.
  uint32_t high_q[kBlocks][4], low_q[kBlocks][4];
  float query_scale[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp_row + lane / 4 + h * 8;
    float x[kBlocks][2][2];
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = c * 16 + e * 8 + lane % 4 * 2;
        const float2 pair = row < range.rows && column < p.head_size
                                ? *reinterpret_cast<const float2*>(q + row * 3 * hidden + column)
                                : make_float2(0.f, 0.f);
        x[c][e][0] = pair.x;
        x[c][e][1] = pair.y;
      }
    }
    const SplitScale powers = MakeSplitScale(WarpMax<4>(LargestFinite<kBlocks * 4>(x[0][0])));
    const float to_halves = powers.to_halves();
    query_scale[h] = powers.of_row() * (p.scale * kLog2e);
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Halves first = SplitNumber(x[c][e][0], to_halves);
        const Halves second = SplitNumber(x[c][e][1], to_halves);
        high_q[c][e * 2 + h] = PackHalves(first.high, second.high);
        low_q[c][e * 2 + h] = PackHalves(first.low, second.low);
      }
    }
  }

  float out[kColTiles][4] = {};
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.f, 0.f};
  const int split_row = thread / kRowThreads, split_first = thread % kRowThreads * 4;
  constexpr int kSplitStep = kRowThreads * 4, kSplitCount = kD / kRowThreads;

  for (int key0 = 0; key0 < range.keys; key0 += kKeys) {
    WaitCopies<1>();  // the keys; the values' group is younger
    __syncthreads();
    {
      float x[kSplitCount / 4][4];
      LoadFours<kSplitCount, kSplitStep>(raw_k + split_row * kPitch + split_first, x);
      const SplitScale powers =
          MakeSplitScale(WarpMax<kRowThreads>(LargestFinite<kSplitCount>(x[0])));
#pragma unroll
      for (int i = 0; i < kSplitCount / 4; ++i) {
        const int at = split_row * kPitch + split_first + i * kSplitStep;
        StoreFourHalves(high_k + at, low_k + at, x[i], powers.to_halves());
      }
      if (split_first == 0) key_scale[split_row] = powers.of_channel();
    }
    __syncthreads();
    load(q + hidden, key0 + kKeys, raw_k);

    // Scores times log2(e)/sqrt(D), so that 2^x serves below.
    float score[kKeys / 8][4];
    if (active) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        float large[2][4] = {}, small[2][4] = {};
#pragma unroll
        for (int c = 0; c < kBlocks; ++c) {
          const int at = (j * 8 + lane % 8 + lane / 16 * 8) * kPitch + c * 16 + lane / 8 % 2 * 8;
          uint32_t high[4], low[4];
          LoadMatrices(high, SharedAddress(high_k + at));
          LoadMatrices(low, SharedAddress(low_k + at));
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            MultiplyAdd<half>(large[e], high_q[c], high[2 * e], high[2 * e + 1]);
            MultiplyAdd<half>(small[e], low_q[c], high[2 * e], high[2 * e + 1]);
            MultiplyAdd<half>(small[e], high_q[c], low[2 * e], low[2 * e + 1]);
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float2 scale =
              *reinterpret_cast<const float2*>(key_scale + (j + e) * 8 + lane % 4 * 2);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            score[j + e][h * 2] = (large[e][h * 2] + small[e][h * 2]) * scale.x * query_scale[h];
            score[j + e][h * 2 + 1] =
                (large[e][h * 2 + 1] + small[e][h * 2 + 1]) * scale.y * query_scale[h];
          }
        }
      }
      if (p.mask != nullptr) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = min(warp_row + lane / 4 + h * 8, p.max_seq_len - 1);
          const float* mask_row =
              static_cast<const float*>(p.mask) +
              (static_cast<int64_t>(sequence) * p.max_seq_len + row) * p.max_seq_len;
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int key = key0 + j * 8 + lane % 4 * 2 + e;
              const float m = key < range.keys ? mask_row[key] : 1.f;
              score[j][h * 2 + e] += (1.f - m) * (-10000.f * kLog2e);
            }
          }
        }
      }
      if (key0 + kKeys > range.keys) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (key0 + j * 8 + lane % 4 * 2 + e >= range.keys) {
              score[j][e] = score[j][2 + e] = -INFINITY;
            }
          }
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = row_max[h];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
          largest = fmaxf(largest, fmaxf(score[j][h * 2], score[j][h * 2 + 1]));
        }
        largest = WarpMax<4>(largest);
        const float reference = SoftmaxReference(largest);
        const float correction = FastExp2(row_max[h] - reference);
        row_max[h] = largest;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[j][h * 2 + e];
            s = FastExp2(s - reference);
            sum += s;
          }
        }
        row_sum[h] = row_sum[h] * correction + sum;
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          out[c][h * 2] *= correction;
          out[c][h * 2 + 1] *= correction;
        }
      }
    }

    WaitCopies<1>();  // the values; the next keys' group is younger
    __syncthreads();
    float value_scale;
    {
      float x[kSplitCount / 4][4];
      LoadFours<kSplitCount, kSplitStep>(raw_v + split_row * kPitch + split_first, x);
      const SplitScale powers =
          MakeSplitScale(BlockMax<kThreads>(LargestFinite<kSplitCount>(x[0]), scratch));
      value_scale = powers.of_channel();
#pragma unroll
      for (int i = 0; i < kSplitCount / 4; ++i) {
        const int at = split_row * kPitch + split_first + i * kSplitStep;
        StoreFourHalves(high_v + at, low_v + at, x[i], powers.to_halves());
      }
    }
    __syncthreads();
    load(q + 2 * hidden, key0 + kKeys, raw_v);
    if (!active) continue;

    // Weights are at most 1: their power of two is the same everywhere.
    uint32_t high_w[kKeys / 16][4], low_w[kKeys / 16][4];
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const s = &score[2 * j + i / 2][i % 2 * 2];
        const HalvesPair pair = SplitPair(s[0] * kWeightToHalves, s[1] * kWeightToHalves);
        high_w[j][i] = pair.high;
        low_w[j][i] = pair.low;
      }
    }
#pragma unroll
    for (int c = 0; c < kColTiles; c += 2) {
      float large[2][4] = {}, small[2][4] = {};
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        const int at = (j * 16 + lane % 16) * kPitch + c * 8 + lane / 16 * 8;
        uint32_t high[4], low[4];
        LoadMatricesTransposed(high, SharedAddress(high_v + at));
        LoadMatricesTransposed(low, SharedAddress(low_v + at));
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          MultiplyAdd<half>(large[e], high_w[j], high[2 * e], high[2 * e + 1]);
          MultiplyAdd<half>(small[e], low_w[j], high[2 * e], high[2 * e + 1]);
          MultiplyAdd<half>(small[e], high_w[j], low[2 * e], low[2 * e + 1]);
        }
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          out[c + e][i] = fmaf(large[e][i] + small[e][i], value_scale, out[c + e][i]);
        }
      }
    }
  }
  WaitCopies<0>();
  if (!active) return;
  // The branch is the same for all threads.
  const bool to_integers = p.out_scale != nullptr;
  const float out_scale = to_integers ? *p.out_scale : 1.f;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = WarpSum<4>(row_sum[h]);
    const float inverse = SoftmaxInverse(sum, range.keys);
    const int row = warp_row + lane / 4 + h * 8;
    if (row >= range.rows) continue;
    const int64_t output = (range.first + row) * hidden + head * p.head_size;
#pragma unroll
    for (int c = 0; c < kColTiles; ++c) {
      const int column = c * 8 + lane % 4 * 2;
      if (column >= p.head_size) continue;
      const float x = out[c][h * 2] * inverse, y = out[c][h * 2 + 1] * inverse;
      if (to_integers) {
        *reinterpret_cast<uint16_t*>(static_cast<int8_t*>(p.output) + output + column) =
            PackPair(p.to_float8, x * out_scale, y * out_scale);
      } else {
        *reinterpret_cast<float2*>(static_cast<float*>(p.output) + output + column) =
            make_float2(x, y);
      }
    }
  }
#endif
}

// A tile is split by all warps, also where there are fewer rows than they have room for.
template <int kD>
Status LaunchSplitAttention(AttentionParams params, const LaunchContext& context) {
  constexpr int kWarps = 8, kRows = 16 * kWarps;
  params.row_tiles = (params.max_seq_len + kRows - 1) / kRows;
  const int64_t blocks =
      static_cast<int64_t>(params.row_tiles) * params.num_heads * params.batch_size;
  return Launch(AttentionSplitKernel<kD, kWarps>, Grid{blocks}, 32 * kWarps,
                SplitAttentionSharedBytes(kD), context, params);
}

}  // namespace cuda
}  // namespace ft
