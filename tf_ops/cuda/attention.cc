#include <cmath>

#include "tf_ops/cuda/attention_internal.h"

namespace ft {
namespace cuda {

AttentionChoice SelectAttention(DataType dtype, int64_t head_size, int64_t max_seq_len,
                                int64_t batch_size, int64_t num_heads, int compute_capability,
                                int num_multiprocessors, int max_shared_bytes) {
  AttentionChoice choice;
  if (head_size > 128) {
    choice.reason = "head size above 128";
    return choice;
  }
  choice.head_size_tile = head_size <= 32 ? 32 : head_size <= 64 ? 64 : head_size <= 96 ? 96 : 128;
  choice.kind = AttentionKind::kTiled;
  choice.rows_per_block = choice.head_size_tile <= 64 ? 64 : 32;
  if (SizeOf(dtype) != 2) {
    choice.reason = "float32 has no exact tensor core product";
  } else if (compute_capability < 80) {
    choice.reason = "the tensor core kernel needs compute capability 8.0";
  } else if (head_size % 8 != 0) {
    choice.reason = "the tensor core kernel needs a head size that is a multiple of 8";
  } else {
    choice.kind = AttentionKind::kTensorCore;
    // 128 rows use each key twice as often; 64 rows fill the device earlier.
    const int64_t large_blocks = (max_seq_len + 127) / 128 * batch_size * num_heads;
    const bool large = max_seq_len > 64 && large_blocks >= num_multiprocessors &&
                       MmaSharedBytes(choice.head_size_tile, 128) <= max_shared_bytes &&
                       choice.head_size_tile <= 64;
    choice.rows_per_block = large ? 128 : 64;
    choice.reason = "16-bit type, head size a multiple of 8 up to 128";
  }
  return choice;
}

Status LaunchAttention(const AttentionArgs& args, const AttentionChoice& choice,
                       const LaunchContext& context) {
  if (args.batch_size == 0 || args.max_seq_len == 0) return OkStatus();
  const int64_t blocks = args.batch_size * args.num_heads * args.max_seq_len;
  if (blocks > INT32_MAX) {
    return Unimplemented("attention over batch ", args.batch_size, " x heads ", args.num_heads,
                         " x length ", args.max_seq_len, "; the product may be at most ", INT32_MAX);
  }
  AttentionParams params;
  params.qkv = args.qkv;
  params.output = args.output;
  params.seq_offsets = args.seq_offsets;
  params.key_lengths = args.key_lengths;
  params.mask = args.mask;
  params.batch_size = static_cast<int>(args.batch_size);
  params.max_seq_len = static_cast<int>(args.max_seq_len);
  params.num_heads = static_cast<int>(args.num_heads);
  params.head_size = static_cast<int>(args.head_size);
  params.row_tiles = 0;
  params.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.head_size)));
  switch (choice.kind) {
    case AttentionKind::kTensorCore:
      switch (choice.head_size_tile) {
        case 32:
          return LaunchMma32(args.dtype, choice.rows_per_block, params, context);
        case 64:
          return LaunchMma64(args.dtype, choice.rows_per_block, params, context);
        case 96:
          return LaunchMma96(args.dtype, choice.rows_per_block, params, context);
        default:
          return LaunchMma128(args.dtype, choice.rows_per_block, params, context);
      }
    case AttentionKind::kTiled:
      return LaunchTiledAttention(args.dtype, choice.head_size_tile, params, context);
    case AttentionKind::kSimple:
      break;
  }
  return LaunchSimpleAttention(args.dtype, params, context);
}

}  // namespace cuda
}  // namespace ft
