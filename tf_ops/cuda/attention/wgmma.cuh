// Fused attention on Hopper's tensor cores (wgmma, sm_90a), for float16 and bfloat16 without mask.
// Included by attention_wgmma_<head size>.cu, which instantiate it; compiled for sm_90a alone.
//
// Source: "FlashAttention-3" (Shah et al., 2024), section 3: the softmax of one tile under the
// products of another. Sums are kept relative to a reference that may be a little less than the
// maximum, which is as exact and seldom has to move (an idea of FlashAttention-4).
#pragma once

#include <mutex>

#include "tf_ops/cuda/attention/hopper.cuh"
#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/integers.cuh"

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

// A block computes kRows query rows of one head. One thread lets the copy engine fetch the queries
// and as many tiles of keys and values as there is room for, and refills a tile that all have read;
// for BERT's lengths all fit. Tensor copies rather than cp.async: the softmax needs the issue
// slots. There is no warp for the copies alone: it would take registers that the others need.
// Tensor copies bring rows past a sequence's end too, which may be NaN: scores of such keys are
// replaced, and such values are overwritten by zeros before their product. In a warpgroup the
// softmax of tile t runs under the product of weights and values of tile t - 1; the products of the
// multiprocessor's other warpgroups fill the rest.
template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    AttentionWgmmaKernel(const AttentionParams p, const __grid_constant__ CUtensorMap qkv_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using T = typename C::T;
  constexpr int kD = C::kD, kKeys = C::kKeys, kStages = C::kStages, kRowBytes = C::kRowBytes;
  constexpr float kLog2e = 1.4426950408889634f;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = SharedAddress(shared);
  // Barriers: "full" is for the bytes of a buffer, "empty" for the warps that have read it.
  const uint32_t full_q = base + C::kBarrierOffset;
  const auto full_k = [&](int i) { return full_q + (1 + i) * 8; };
  const auto full_v = [&](int i) { return full_k(kStages + i); };
  const auto empty_tile = [&](int i) { return full_k(2 * kStages + i); };
  const auto key_tile = [&](int i) { return base + C::kTileOffset + 2 * i * C::kTileBytes; };
  const auto value_tile = [&](int i) { return key_tile(i) + C::kTileBytes; };

  const int lane = threadIdx.x % 32;
  const int warp =
      __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // tell the compiler it is uniform
  const int group = warp / 4, warp_row = warp % 4 * 16;
  const int head = blockIdx.y;
  const int block_row = blockIdx.x * C::kRows, first_row = block_row + group * 64;
  AllowNextKernel();
  if (threadIdx.x == 0) PrefetchTensorMap(&qkv_map);
  // A weight: it may be read before the previous kernel has ended.
  const bool to_integers = p.out_scale != nullptr;
  const float out_scale = to_integers ? *p.out_scale : 1.f;
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, blockIdx.z);
  if (block_row >= range.rows) return;
  const int num_tiles = (range.keys + kKeys - 1) / kKeys;

  const auto copy = [&](uint32_t target, int panel_bytes, int head_index, int row, int rows,
                        uint32_t barrier) {
#pragma unroll
    for (int panel = 0; panel < C::kPanels; ++panel) {
#pragma unroll
      for (int r = 0; r < rows; r += C::kBoxRows) {
        CopyBox(target + panel * panel_bytes + r * kRowBytes, &qkv_map, panel * C::kPanelCols,
                head_index, static_cast<int>(range.first) + row + r, barrier);
      }
    }
  };
  const auto copy_tile = [&](int t, int s) {
    ArriveExpectBytes(full_k(s), C::kTileBytes);
    copy(key_tile(s), kKeys * kRowBytes, p.num_heads + head, t * kKeys, kKeys, full_k(s));
    ArriveExpectBytes(full_v(s), C::kTileBytes);
    copy(value_tile(s), kKeys * kRowBytes, 2 * p.num_heads + head, t * kKeys, kKeys, full_v(s));
  };
  if (threadIdx.x == 0) {
    if (base % 1024 != 0) __trap();  // the swizzle counts on it
    const int groups = min(C::kGroups, (range.rows - block_row + 63) / 64);
    InitBarrier(full_q, 1);
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full_k(i), 1);
      InitBarrier(full_v(i), 1);
      InitBarrier(empty_tile(i), 4 * groups);
    }
    FenceBarrierInit();
    ArriveExpectBytes(full_q, groups * C::kQueryBytes);
    for (int g = 0; g < groups; ++g) {
      copy(base + g * C::kQueryBytes, 64 * kRowBytes, head, block_row + g * 64, 64, full_q);
    }
    for (int t = 0; t < min(num_tiles, kStages); ++t) copy_tile(t, t);
  }
  __syncthreads();
  if (first_row >= range.rows) return;  // this warpgroup has no rows

  // Where the warpgroup's queries lie, later its output: 16-byte chunk of a row.
  const uint32_t query_tile = base + group * C::kQueryBytes;
  const auto chunk_offset = [&](int row, int chunk) {
    constexpr int kChunks = kRowBytes / 16;
    return (chunk / kChunks * 64 + row) * kRowBytes +
           SwizzledChunk<kRowBytes>(row, chunk % kChunks) * 16;
  };
  const float scale = p.scale * kLog2e;  // scores times log2(e)/sqrt(D), so that 2^x serves
  const float slack = 8.f / scale;       // weights stay below 2^8
  float score[kKeys / 2];
  uint32_t query[C::kQueryRegisters ? kD / 16 : 1][4];
  uint32_t weight[kKeys / 16][4];
  float out[kD / 2];
#pragma unroll
  for (float& x : out) x = 0.f;
  float reference[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};

  WaitBarrier(full_q, 0);
  __syncwarp();
  if constexpr (C::kQueryRegisters) {
#pragma unroll
    for (int c = 0; c < kD / 16; ++c) {
      LoadMatrices(query[c], query_tile + chunk_offset(warp_row + lane % 16, c * 2 + lane / 16));
    }
  }

  // Starts scores = queries keys^T of the tile in slot s of the ring.
  const auto start_scores = [&](int s, int parity) {
    WaitBarrier(full_k(s), parity);
    __syncwarp();
    if constexpr (C::kQueryRegisters) PinRegisters(query);
    FenceProducts();
#pragma unroll
    for (int c = 0; c < kD; c += 16) {
      const int panel = c / C::kPanelCols, offset = c % C::kPanelCols * 2;
      const uint64_t keys =
          MatrixDescriptor<kRowBytes>(key_tile(s) + panel * kKeys * kRowBytes + offset, 16);
      if constexpr (C::kQueryRegisters) {
        WarpgroupProduct<T, kKeys>::template FromRegisters<0>(score, query[c / 16], keys, c != 0);
      } else {
        WarpgroupProduct<T, kKeys>::FromShared(
            score, MatrixDescriptor<kRowBytes>(query_tile + panel * 64 * kRowBytes + offset, 16),
            keys, c != 0);
      }
    }
    CommitProducts();
  };
  // Starts out += weights values of the tile in slot s, whose values have come.
  const auto start_output = [&](int s) {
    const uint32_t values = value_tile(s);
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
  };
  // Scores become weights 2^(score - reference), added to `sum`. True if a row of this warp got a
  // new reference; `correction` then holds what older sums and outputs are to be multiplied by.
  float correction[2];
  const auto softmax = [&](int keys_left) {
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
  };
  const auto pack = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[k][i] = ToPair<T>(score[k * 8 + i * 2], score[k * 8 + i * 2 + 1]);
      }
    }
  };

  int slot = 0, parity = 0;  // of the newest tile
  if (num_tiles > 0) {
    start_scores(0, 0);
    WaitProducts<0>();
    PinRegisters(score);
    softmax(range.keys);
    pack();
    for (int t = 1; t < num_tiles; ++t) {
      const int previous = slot, previous_parity = parity;
      if (++slot == kStages) {
        slot = 0;
        parity ^= 1;
      }
      start_scores(slot, parity);
      WaitBarrier(full_v(previous), previous_parity);
      __syncwarp();
      start_output(previous);
      WaitProducts<1>();
      PinRegisters(score);
      const bool moved = softmax(range.keys - t * kKeys);
      PinRegisters(score);
      KeepBefore(sum[0] + sum[1]);
      WaitProducts<0>();
      PinRegisters(out);
      PinRegisters(weight);
      if (num_tiles > kStages) {
        if (lane == 0) Arrive(empty_tile(previous));
        // With enough tiles they are refilled one late: by then the other warps too have probably
        // read them, and this one need not wait.
        constexpr int kLate = kStages >= 4 ? 1 : 0;
        const int old = t - 1 - kLate;
        if (threadIdx.x == 0 && old >= 0 && old + kStages < num_tiles) {
          WaitBarrier(empty_tile(old % kStages), old / kStages % 2);
          copy_tile(old + kStages, old % kStages);
        }
        __syncwarp();
      }
      if (moved) {
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) out[i] *= correction[i / 2 % 2];
      }
      pack();
    }
    const int valid = range.keys - (num_tiles - 1) * kKeys;
    WaitBarrier(full_v(slot), parity);
    __syncwarp();
    if (valid < kKeys) {
      // Every warpgroup writes all the zeros, so that none waits for another.
      unsigned char* const values = shared + (value_tile(slot) - base) + valid * kRowBytes;
#pragma unroll
      for (int panel = 0; panel < C::kPanels; ++panel) {
        for (int i = threadIdx.x % 128 * 16; i < (kKeys - valid) * kRowBytes; i += 128 * 16) {
          *reinterpret_cast<uint4*>(values + panel * kKeys * kRowBytes + i) = uint4{0, 0, 0, 0};
        }
      }
      FenceAsyncProxy();
      SyncWarpgroup(1 + group);
    }
    start_output(slot);
    WaitProducts<0>();
    PinRegisters(out);
    PinRegisters(weight);
  }

  // The output goes through the warp's own rows of the queries, so that stores are 16 bytes wide,
  // or eight integers: half a chunk. The branch is the same for all threads.
  SyncWarpgroup(1 + group);
  unsigned char* const staging = shared + (query_tile - base);
  const auto integers_offset = [&](int row, int c) { return chunk_offset(row, c / 2) + c % 2 * 8; };
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
            PackIntegers(x * out_scale, y * out_scale);
      } else {
        *reinterpret_cast<uint32_t*>(staging + chunk_offset(row, c) + lane % 4 * 4) =
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
          *reinterpret_cast<const uint4*>(staging + chunk_offset(r, c));
    }
  }
#endif
}

// The map of qkv as [T][3N][D], in boxes of 64 rows of one head's panel: columns past D are zeros,
// so that head sizes below kD work.
inline Status MakeQkvMap(DataType dtype, const AttentionParams& p, int64_t num_tokens,
                         int panel_cols, int box_rows, CUtensorMap* map) {
  // From the driver by name: the library is not linked against it.
  static decltype(&cuTensorMapEncodeTiled) encode = nullptr;
  static std::mutex mutex;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (encode == nullptr) {
      void* function = nullptr;
      cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
      FT_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found));
#else
      FT_RETURN_IF_CUDA_ERROR(
          cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
      if (found != cudaDriverEntryPointSuccess || function == nullptr) {
        return FailedPrecondition("the CUDA driver has no cuTensorMapEncodeTiled (needs 12.0)");
      }
      encode = reinterpret_cast<decltype(encode)>(function);
    }
  }
  const cuuint64_t head_bytes = static_cast<cuuint64_t>(p.head_size) * 2;
  const cuuint64_t heads = static_cast<cuuint64_t>(p.num_heads) * 3;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(p.head_size), heads,
                               static_cast<cuuint64_t>(num_tokens)};
  const cuuint64_t strides[2] = {head_bytes, head_bytes * heads};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(panel_cols), 1,
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(map,
             dtype == DataType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             3, const_cast<void*>(p.qkv), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             panel_cols == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Internal("cuTensorMapEncodeTiled failed with ", static_cast<int>(result), " for ",
                    num_tokens, " rows of 3 x ", p.num_heads, " x ", p.head_size);
  }
  return OkStatus();
}

template <typename C>
Status LaunchWgmma(DataType dtype, AttentionParams params, int64_t num_tokens,
                   const LaunchContext& context) {
  CUtensorMap map;
  FT_RETURN_IF_ERROR(MakeQkvMap(dtype, params, num_tokens, C::kPanelCols, C::kBoxRows, &map));
  const Grid grid = {(params.max_seq_len + C::kRows - 1) / C::kRows, params.num_heads,
                     params.batch_size};
  return Launch(AttentionWgmmaKernel<C>, grid, C::kThreads, C::kSharedBytes, context, params, map);
}

// The instance that `choice` names; SelectAttention and WarpgroupAttentionChoices know which exist.
template <int kD>
Status LaunchWgmmaHeadSize(DataType dtype, const AttentionChoice& choice,
                           const AttentionParams& params, int64_t num_tokens,
                           const LaunchContext& context) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    if constexpr (kD <= 64) {
      if constexpr (kD == 64) {
        if (choice.keys_per_tile == 128) {
          return LaunchWgmma<WgmmaConfig<T, kD, 1, 128, 2, 3, false>>(dtype, params, num_tokens,
                                                                      context);
        }
      }
      return LaunchWgmma<WgmmaConfig<T, kD, 1, 64, 4, 3, true>>(dtype, params, num_tokens, context);
    } else {
      if (choice.rows_per_block == 192) {
        return LaunchWgmma<WgmmaConfig<T, kD, 3, 64, 4, 1, false>>(dtype, params, num_tokens,
                                                                   context);
      }
      return LaunchWgmma<WgmmaConfig<T, kD, 1, 64, 2, 2, false>>(dtype, params, num_tokens,
                                                                 context);
    }
  };
  return dtype == DataType::kFloat16 ? launch(half()) : launch(__nv_bfloat16());
}

}  // namespace cuda
}  // namespace ft
