#include <algorithm>
#include <cmath>

#include "tf_ops/cuda/attention_internal.h"

namespace ft {
namespace cuda {
namespace {

// Up to this length the mma.sync kernel needs a single tile of keys.
constexpr int64_t kMmaMaxSeqLen = 64;
constexpr int64_t kMaxGridYZ = 65535;
constexpr int kWarpgroupMinShared = 227 * 1024;  // compute capability 9.0 has it

}  // namespace

std::vector<AttentionChoice> WarpgroupAttentionChoices(int64_t head_size) {
  struct Instance {
    int rows, keys;
  };
  // In the order of variants.
  static const auto* const of_32 = new std::vector<Instance>{{128, 64}, {64, 64}, {64, 128}};
  static const auto* const of_64 = new std::vector<Instance>{
      {128, 64}, {128, 64},  {192, 64}, {192, 128}, {64, 64},
      {64, 128}, {128, 128}, {64, 64},  {128, 64},  {192, 64}};
  static const auto* const of_128 = new std::vector<Instance>{{192, 64}, {64, 64}};
  if (head_size > 128) return {};
  const std::vector<Instance>& instances =
      head_size <= 32 ? *of_32 : head_size <= 64 ? *of_64 : *of_128;
  std::vector<AttentionChoice> choices;
  for (size_t i = 0; i < instances.size(); ++i) {
    AttentionChoice choice;
    choice.kind = AttentionKind::kWarpgroup;
    choice.head_size_tile = head_size <= 32   ? 32
                            : head_size <= 64 ? 64
                            : head_size <= 96 ? 96
                                              : 128;
    choice.rows_per_block = instances[i].rows;
    choice.keys_per_tile = instances[i].keys;
    choice.variant = static_cast<int>(i);
    choice.reason = "16-bit type without mask on compute capability 9.0";
    choices.push_back(choice);
  }
  return choices;
}

AttentionChoice SelectAttention(DataType dtype, int64_t head_size, int64_t max_seq_len,
                                int64_t batch_size, int64_t num_heads, bool has_mask,
                                int compute_capability, int num_multiprocessors,
                                int max_shared_bytes) {
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
    const std::vector<AttentionChoice> warpgroup = WarpgroupAttentionChoices(choice.head_size_tile);
    // Code of sm_90a runs on compute capability 9.0 alone.
    if (compute_capability != 90) {
      choice.reason = "wgmma needs compute capability 9.0";
    } else if (has_mask) {
      choice.reason = "the wgmma kernel takes no mask";
    } else if (max_seq_len <= kMmaMaxSeqLen) {
      choice.reason = "one tile of keys: mma.sync starts earlier";
    } else if (kWarpgroupMinShared > max_shared_bytes) {
      choice.reason = "too little shared memory for wgmma";
    } else if (std::max(batch_size, num_heads) > kMaxGridYZ) {
      choice.reason = "too many sequences or heads for the wgmma kernel's grid";
    } else {
      return warpgroup[0];
    }
    choice.kind = AttentionKind::kTensorCore;
    // 128 rows use each key twice as often; 64 rows fill the device earlier.
    const int64_t large_blocks = (max_seq_len + 127) / 128 * batch_size * num_heads;
    const bool large = max_seq_len > 64 && large_blocks >= num_multiprocessors &&
                       MmaSharedBytes(choice.head_size_tile, 128) <= max_shared_bytes &&
                       choice.head_size_tile <= 64;
    choice.rows_per_block = large ? 128 : 64;
  }
  return choice;
}

Status LaunchAttention(const AttentionArgs& args, const AttentionChoice& choice,
                       const LaunchContext& context) {
  if (args.batch_size == 0 || args.max_seq_len == 0) return OkStatus();
  const int64_t blocks = args.batch_size * args.num_heads * args.max_seq_len;
  if (blocks > INT32_MAX) {
    return Unimplemented("attention over batch ", args.batch_size, " x heads ", args.num_heads,
                         " x length ", args.max_seq_len, "; the product may be at most ",
                         INT32_MAX);
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
    case AttentionKind::kWarpgroup: {
      if (args.mask != nullptr || context.compute_capability != 90) {
        return Internal("wgmma attention was chosen for compute capability ",
                        context.compute_capability, args.mask != nullptr ? " with a mask" : "");
      }
      if (args.seq_offsets != nullptr && args.num_tokens < 0) {
        return Internal("wgmma attention needs num_tokens with seq_offsets");
      }
      // The device checks bounds with it: no row past the buffer's end is read.
      const int64_t tokens =
          args.seq_offsets != nullptr ? args.num_tokens : args.batch_size * args.max_seq_len;
      if (tokens == 0) return OkStatus();
      switch (choice.head_size_tile) {
        case 32:
          return LaunchWgmma32(args.dtype, choice, params, tokens, context);
        case 64:
          return LaunchWgmma64(args.dtype, choice, params, tokens, context);
        case 96:
          return LaunchWgmma96(args.dtype, choice, params, tokens, context);
        default:
          return LaunchWgmma128(args.dtype, choice, params, tokens, context);
      }
    }
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
