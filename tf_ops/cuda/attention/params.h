// What the attention kernels share among themselves.
#pragma once

#include "tf_ops/cuda/attention/attention.h"

namespace ft {
namespace cuda {

struct AttentionParams {
  const void* qkv;
  void* output;
  const float* out_scale;  // null: the output is of the queries' type; else int8 or float8
  bool to_float8;
  const int32_t* seq_offsets;
  const int32_t* key_lengths;
  const void* mask;
  const int32_t* mask_keys;
  int batch_size, max_seq_len, num_heads, head_size;
  int row_tiles;  // blocks over the query rows of one sequence and head
  float scale;    // 1 / sqrt(D)
};

AttentionParams MakeAttentionParams(const AttentionArgs&);

#ifdef __CUDACC__
// Query rows and keys of one sequence.
struct SequenceRange {
  int64_t first;  // row in qkv
  int rows, keys;
};

// The query rows, head and sequence of a block, where blocks go round the rows of a head first.
struct BlockPlace {
  int first_row, head, sequence;
};

__device__ __forceinline__ BlockPlace GetBlockPlace(const AttentionParams& p, int rows_per_block) {
  const int tile = blockIdx.x % p.row_tiles;
  const int head = blockIdx.x / p.row_tiles % p.num_heads;
  return {tile * rows_per_block, head, static_cast<int>(blockIdx.x / p.row_tiles / p.num_heads)};
}

// By lengths or offsets alone.
__device__ __forceinline__ SequenceRange GetSequenceLengths(const AttentionParams& p,
                                                            int sequence) {
  if (p.seq_offsets != nullptr) {
    const int32_t first = p.seq_offsets[sequence];
    const int length = p.seq_offsets[sequence + 1] - first;
    return {first, length, length};
  }
  const int keys = p.key_lengths != nullptr ? min(max(p.key_lengths[sequence], 0), p.max_seq_len)
                                            : p.max_seq_len;
  return {static_cast<int64_t>(sequence) * p.max_seq_len, p.max_seq_len, keys};
}

__device__ __forceinline__ SequenceRange GetSequenceRange(const AttentionParams& p, int sequence) {
  SequenceRange range = GetSequenceLengths(p, sequence);
  if (p.mask_keys != nullptr) {
    int keys = range.keys;
#pragma unroll
    for (int i = 0; i < kMaskParts; ++i) keys = min(keys, p.mask_keys[sequence * kMaskParts + i]);
    if ((keys < 0) == (p.mask == nullptr)) {
      range.rows = 0;  // the other launch's
    } else if (keys >= 0) {
      range.keys = keys;
    }
  }
  return range;
}
#endif

// Shared memory of the tensor core kernel: queries, and two tiles of keys and values.
inline int64_t MmaSharedBytes(int head_size_tile, int rows, int keys_per_tile) {
  return static_cast<int64_t>(rows + 4 * keys_per_tile) * (head_size_tile + 8) * 2;
}

// The same of the split kernel: a tile of 64 keys and one of values, as float32 and as halves.
inline int64_t SplitAttentionSharedBytes(int head_size_tile) {
  return 2 * 64 * static_cast<int64_t>(head_size_tile + 8) * 8;
}

Status LaunchMma32(DataType, int rows_per_block, const AttentionParams&, const LaunchContext&);
Status LaunchMma64(DataType, int rows_per_block, const AttentionParams&, const LaunchContext&);
Status LaunchMma96(DataType, int rows_per_block, const AttentionParams&, const LaunchContext&);
Status LaunchMma128(DataType, int rows_per_block, const AttentionParams&, const LaunchContext&);
Status LaunchWgmma32(DataType, const AttentionChoice&, const AttentionParams&, int64_t num_tokens,
                     const LaunchContext&);
Status LaunchWgmma64(DataType, const AttentionChoice&, const AttentionParams&, int64_t num_tokens,
                     const LaunchContext&);
Status LaunchWgmma96(DataType, const AttentionChoice&, const AttentionParams&, int64_t num_tokens,
                     const LaunchContext&);
Status LaunchWgmma128(DataType, const AttentionChoice&, const AttentionParams&, int64_t num_tokens,
                      const LaunchContext&);
Status LaunchSplit32(const AttentionParams&, const LaunchContext&);
Status LaunchSplit64(const AttentionParams&, const LaunchContext&);
Status LaunchSplit96(const AttentionParams&, const LaunchContext&);
Status LaunchSplit128(const AttentionParams&, const LaunchContext&);
Status LaunchTiledAttention(DataType, int head_size_tile, const AttentionParams&,
                            const LaunchContext&);
Status LaunchSimpleAttention(DataType, const AttentionParams&, const LaunchContext&);

}  // namespace cuda
}  // namespace ft
