// Fused attention on Hopper's tensor cores for long sequences: one block a multiprocessor, which
// goes from head to head. Included by wgmma.cuh; compiled for sm_90a alone.
//
// Source: "FlashAttention-3" (Shah et al., 2024), sections 3.1 and 3.2: a warp for the copies, and
// warpgroups whose products take turns.
#pragma once

#include <algorithm>

#include "tf_ops/cuda/attention/warpgroup_rows.cuh"

namespace ft {
namespace cuda {

// Three warpgroups of 64 query rows, and one for the copies. Keys and values come in a ring of
// kStages tiles that runs on from head to head; queries have two buffers.
template <typename Type, int kHeadSize>
struct PersistentConfig : WgmmaConfig<Type, kHeadSize, 3, 128, 4, 1, false> {
  using Base = WgmmaConfig<Type, kHeadSize, 3, 128, 4, 1, false>;
  static constexpr int kQueryBuffers = 2, kAllThreads = Base::kThreads + 128;
  // All of a multiprocessor's: 3 * 128 * 160 + 128 * 32 = 65536.
  static constexpr int kRegisters = 160, kCopyRegisters = 32;
  static constexpr int kQueryBufferBytes = Base::kGroups * Base::kQueryBytes;
  static constexpr int kTileOffset = kQueryBuffers * kQueryBufferBytes;
  static constexpr int kBarrierOffset = kTileOffset + 2 * Base::kStages * Base::kTileBytes;
  static constexpr int kSharedBytes = kBarrierOffset + (2 * kQueryBuffers + 3 * Base::kStages) * 8;
};

// Items are kRows query rows of a head of a sequence; block i computes every gridDim.x-th from i
// on. While a warpgroup is in its softmax the products of the others run: they hand round a turn,
// so that not all products come first and then all softmaxes. In a warpgroup the softmax of tile t
// also runs under the product of weights and values of tile t - 1, as in AttentionWgmmaKernel,
// which says how rows past a sequence's end are kept out.
template <typename C>
__global__ void __launch_bounds__(C::kAllThreads, 1)
    AttentionPersistentKernel(const AttentionParams p,
                              const __grid_constant__ CUtensorMap qkv_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kKeys = C::kKeys, kStages = C::kStages, kGroups = C::kGroups;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = SharedAddress(shared);
  // Barriers: "full" is for the bytes of a buffer, "empty" for the warps that have read it.
  const auto barrier = [&](int i) { return base + C::kBarrierOffset + i * 8; };
  const auto full_q = [&](int i) { return barrier(i); };
  const auto empty_q = [&](int i) { return barrier(C::kQueryBuffers + i); };
  const auto full_k = [&](int i) { return barrier(2 * C::kQueryBuffers + i); };
  const auto full_v = [&](int i) { return full_k(kStages + i); };
  const auto empty_tile = [&](int i) { return full_k(2 * kStages + i); };
  const auto queries = [&](int i) { return base + i * C::kQueryBufferBytes; };
  const auto key_tile = [&](int i) { return base + C::kTileOffset + 2 * i * C::kTileBytes; };
  const auto value_tile = [&](int i) { return key_tile(i) + C::kTileBytes; };

  const int lane = threadIdx.x % 32;
  const int warp =
      __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // tell the compiler it is uniform
  const int group = warp / 4;
  AllowNextKernel();
  if (threadIdx.x == 0) {
    PrefetchTensorMap(&qkv_map);
    if (base % 1024 != 0) __trap();  // the swizzle counts on it
    for (int i = 0; i < C::kQueryBuffers; ++i) {
      InitBarrier(full_q(i), 1);
      InitBarrier(empty_q(i), 4 * kGroups);
    }
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full_k(i), 1);
      InitBarrier(full_v(i), 1);
      InitBarrier(empty_tile(i), 4 * kGroups);
    }
    FenceBarrierInit();
  }
  // A weight: it may be read before the previous kernel has ended.
  const bool to_integers = p.out_scale != nullptr;
  const float out_scale = to_integers ? *p.out_scale : 1.f;
  __syncthreads();
  WaitForPreviousKernel();

  const int num_items = p.row_tiles * p.num_heads * p.batch_size;
  RingPlace<C::kQueryBuffers> buffer;
  RingPlace<kStages> tile;
  const auto place = [&](int item) {
    return BlockPlace{item % p.row_tiles * C::kRows, item / p.row_tiles % p.num_heads,
                      item / p.row_tiles / p.num_heads};
  };

  if (group == kGroups) {
    GiveRegisters<C::kCopyRegisters>();
    if (threadIdx.x != C::kThreads) return;
    for (int item = blockIdx.x; item < num_items; item += gridDim.x) {
      const BlockPlace at = place(item);
      const SequenceRange range = GetSequenceRange(p, at.sequence);
      if (at.first_row >= range.rows) continue;
      const int first = static_cast<int>(range.first);
      const int groups = min(kGroups, (range.rows - at.first_row + 63) / 64);
      WaitBarrier(empty_q(buffer.slot), buffer.parity ^ 1);
      ArriveExpectBytes(full_q(buffer.slot), groups * C::kQueryBytes);
      for (int g = 0; g < groups; ++g) {
        CopyRows<C>(queries(buffer.slot) + g * C::kQueryBytes, &qkv_map, at.head,
                    first + at.first_row + g * 64, 64, full_q(buffer.slot));
      }
      buffer.Advance();
      for (int key = 0; key < range.keys; key += kKeys) {
        WaitBarrier(empty_tile(tile.slot), tile.parity ^ 1);
        ArriveExpectBytes(full_k(tile.slot), C::kTileBytes);
        CopyRows<C>(key_tile(tile.slot), &qkv_map, p.num_heads + at.head, first + key, kKeys,
                    full_k(tile.slot));
        ArriveExpectBytes(full_v(tile.slot), C::kTileBytes);
        CopyRows<C>(value_tile(tile.slot), &qkv_map, 2 * p.num_heads + at.head, first + key, kKeys,
                    full_v(tile.slot));
        tile.Advance();
      }
    }
    return;
  }

  TakeRegisters<C::kRegisters>();
  // Named barriers: 1 to kGroups for the turns, then one for each warpgroup itself.
  const int own_barrier = 1 + kGroups + group;
  const auto take_turn = [&] { WaitNamed(1 + group, 256); };
  const auto pass_turn = [&] { ArriveNamed(1 + (group + 1) % kGroups, 256); };
  if (group == kGroups - 1) pass_turn();
  WarpgroupRows<C> rows(warp, p.scale);
  for (int item = blockIdx.x; item < num_items; item += gridDim.x) {
    const BlockPlace at = place(item);
    const SequenceRange range = GetSequenceRange(p, at.sequence);
    if (at.first_row >= range.rows) continue;
    const int first_row = at.first_row + group * 64;
    const bool has_rows = first_row < range.rows;
    const uint32_t query_tile = queries(buffer.slot) + group * C::kQueryBytes;
    WaitBarrier(full_q(buffer.slot), buffer.parity);
    __syncwarp();
    if (!has_rows) {
      for (int key = 0; key < range.keys; key += kKeys) {
        WaitBarrier(full_k(tile.slot), tile.parity);
        __syncwarp();
        take_turn();
        pass_turn();
        if (lane == 0) Arrive(empty_tile(tile.slot));
        tile.Advance();
      }
    } else {
      rows.Begin(query_tile);
      if (range.keys > 0) {
        WaitBarrier(full_k(tile.slot), tile.parity);
        __syncwarp();
        take_turn();
        rows.StartScores(query_tile, key_tile(tile.slot));
        pass_turn();
        WaitProducts<0>();
        PinRegisters(rows.score);
        rows.Softmax(range.keys);
        rows.Pack();
        RingPlace<kStages> previous = tile;
        tile.Advance();
        for (int key = kKeys; key < range.keys; key += kKeys) {
          WaitBarrier(full_k(tile.slot), tile.parity);
          WaitBarrier(full_v(previous.slot), previous.parity);
          __syncwarp();
          take_turn();
          rows.StartScores(query_tile, key_tile(tile.slot));
          rows.StartOutput(value_tile(previous.slot));
          pass_turn();
          WaitProducts<1>();
          PinRegisters(rows.score);
          const bool moved = rows.Softmax(range.keys - key);
          PinRegisters(rows.score);
          KeepBefore(rows.sum[0] + rows.sum[1]);
          WaitProducts<0>();
          PinRegisters(rows.out);
          PinRegisters(rows.weight);
          if (lane == 0) Arrive(empty_tile(previous.slot));
          __syncwarp();
          if (moved) rows.Correct();
          rows.Pack();
          previous = tile;
          tile.Advance();
        }
        const int valid = (range.keys - 1) % kKeys + 1;
        WaitBarrier(full_v(previous.slot), previous.parity);
        __syncwarp();
        if (valid < kKeys) {
          ClearValues<C>(shared + (value_tile(previous.slot) - base), valid, own_barrier);
        }
        rows.StartOutput(value_tile(previous.slot));
        WaitProducts<0>();
        PinRegisters(rows.out);
        PinRegisters(rows.weight);
        if (lane == 0) Arrive(empty_tile(previous.slot));
      }
      SyncWarpgroup(own_barrier);
      rows.Store(p, range, at.head, first_row, to_integers, out_scale,
                 shared + (query_tile - base));
      // What was written here comes before the copy engine's next queries.
      FenceAsyncProxy();
      __syncwarp();
    }
    if (lane == 0) Arrive(empty_q(buffer.slot));
    buffer.Advance();
  }
  if (group == 0) take_turn();  // the last one passed, so that nobody leaves a barrier half full
#endif
}

template <typename C>
Status LaunchPersistent(DataType dtype, AttentionParams params, int64_t num_tokens,
                        const LaunchContext& context) {
  CUtensorMap map;
  FT_RETURN_IF_ERROR(MakeQkvMap(dtype, params, num_tokens, C::kPanelCols, C::kBoxRows, &map));
  params.row_tiles = (params.max_seq_len + C::kRows - 1) / C::kRows;
  const int64_t items =
      static_cast<int64_t>(params.row_tiles) * params.num_heads * params.batch_size;
  const Grid grid = {std::min<int64_t>(items, context.num_multiprocessors)};
  return Launch(AttentionPersistentKernel<C>, grid, C::kAllThreads, C::kSharedBytes, context,
                params, map);
}

}  // namespace cuda
}  // namespace ft
