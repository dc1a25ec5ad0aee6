// Fused attention on Hopper's tensor cores: a block for every 64 or 192 query rows of a head.
// Included by wgmma_<head size>.cu, which instantiate it; compiled for sm_90a alone.
#pragma once

#include "tf_ops/cuda/attention/persistent.cuh"
#include "tf_ops/cuda/attention/warpgroup_rows.cuh"

namespace ft {
namespace cuda {

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
  constexpr int kKeys = C::kKeys, kStages = C::kStages;
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
  const int group = warp / 4;
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

  const auto copy = [&](uint32_t target, int head_index, int row, int num_rows, uint32_t barrier) {
    CopyRows<C>(target, &qkv_map, head_index, static_cast<int>(range.first) + row, num_rows,
                barrier);
  };
  const auto copy_tile = [&](int t, int s) {
    ArriveExpectBytes(full_k(s), C::kTileBytes);
    copy(key_tile(s), p.num_heads + head, t * kKeys, kKeys, full_k(s));
    ArriveExpectBytes(full_v(s), C::kTileBytes);
    copy(value_tile(s), 2 * p.num_heads + head, t * kKeys, kKeys, full_v(s));
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
      copy(base + g * C::kQueryBytes, head, block_row + g * 64, 64, full_q);
    }
    for (int t = 0; t < min(num_tiles, kStages); ++t) copy_tile(t, t);
  }
  __syncthreads();
  if (first_row >= range.rows) return;  // this warpgroup has no rows

  // Where the warpgroup's queries lie, later its output.
  const uint32_t query_tile = base + group * C::kQueryBytes;
  WarpgroupRows<C> rows(warp, p.scale);
  WaitBarrier(full_q, 0);
  __syncwarp();
  rows.Begin(query_tile);

  const auto start_scores = [&](int s, int parity) {
    WaitBarrier(full_k(s), parity);
    __syncwarp();
    rows.StartScores(query_tile, key_tile(s));
  };

  int slot = 0, parity = 0;  // of the newest tile
  if (num_tiles > 0) {
    start_scores(0, 0);
    WaitProducts<0>();
    PinRegisters(rows.score);
    rows.Softmax(range.keys);
    rows.Pack();
    for (int t = 1; t < num_tiles; ++t) {
      const int previous = slot, previous_parity = parity;
      if (++slot == kStages) {
        slot = 0;
        parity ^= 1;
      }
      start_scores(slot, parity);
      WaitBarrier(full_v(previous), previous_parity);
      __syncwarp();
      rows.StartOutput(value_tile(previous));
      WaitProducts<1>();
      PinRegisters(rows.score);
      const bool moved = rows.Softmax(range.keys - t * kKeys);
      PinRegisters(rows.score);
      KeepBefore(rows.sum[0] + rows.sum[1]);
      WaitProducts<0>();
      PinRegisters(rows.out);
      PinRegisters(rows.weight);
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
      if (moved) rows.Correct();
      rows.Pack();
    }
    const int valid = range.keys - (num_tiles - 1) * kKeys;
    WaitBarrier(full_v(slot), parity);
    __syncwarp();
    if (valid < kKeys) ClearValues<C>(shared + (value_tile(slot) - base), valid, 1 + group);
    rows.StartOutput(value_tile(slot));
    WaitProducts<0>();
    PinRegisters(rows.out);
    PinRegisters(rows.weight);
  }

  SyncWarpgroup(1 + group);
  rows.Store(p, range, head, first_row, to_integers, out_scale, shared + (query_tile - base));
#endif
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
        if (choice.rows_per_block == 192) {
          return LaunchPersistent<PersistentConfig<T, kD>>(dtype, params, num_tokens, context);
        }
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
