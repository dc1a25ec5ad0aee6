#include <algorithm>
#include <cmath>

#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/gemm/split/split_gemm.h"

namespace ft {
namespace cuda {
namespace {

constexpr int64_t kMaxGridYZ = 65535;
constexpr int kWarpgroupMinShared = 227 * 1024;  // compute capability 9.0 has it
constexpr int kSplitStaticShared = 1024;         // at most

int HeadSizeTile(int64_t head_size) {
  return head_size <= 32 ? 32 : head_size <= 64 ? 64 : head_size <= 96 ? 96 : 128;
}

// The fastest of kWarpgroup's kernels, as measured on an H100 (benchmarks/gpu_profile.md).
AttentionChoice WarpgroupAttention(const AttentionArgs& args, const LaunchContext& context) {
  AttentionChoice choice;
  choice.kind = AttentionKind::kWarpgroup;
  choice.head_size_tile = HeadSizeTile(args.head_size);
  choice.rows_per_block = choice.head_size_tile > 64 && args.max_seq_len > 64 ? 192 : 64;
  // Larger tiles are better where lengths fill them.
  const bool full =
      args.seq_offsets == nullptr && args.key_lengths == nullptr && args.mask_keys == nullptr;
  choice.keys_per_tile = choice.head_size_tile == 64 && full && args.max_seq_len > 64 ? 128 : 64;
  // Of long sequences the persistent kernel, where nearly all its warpgroups have rows to the end.
  const int64_t items = (args.max_seq_len + 191) / 192 * args.batch_size * args.num_heads;
  const int64_t turns = (items + context.num_multiprocessors - 1) / context.num_multiprocessors;
  const double used = static_cast<double>(args.max_seq_len) * args.batch_size * args.num_heads /
                      (192.0 * turns * context.num_multiprocessors);
  if (choice.keys_per_tile == 128 && args.max_seq_len > 256 && used > 0.8) {
    choice.rows_per_block = 192;
  }
  choice.reason = "16-bit type without mask on compute capability 9.0";
  return choice;
}

// float32 by split products, where the device has them.
AttentionChoice Float32Attention(const AttentionArgs& args, AttentionChoice choice,
                                 const LaunchContext& context) {
  if (args.ieee_float32) {
    choice.reason = "float32 by IEEE products";
  } else if (context.compute_capability != kSplitCapability) {
    choice.reason = "split products of float32 need compute capability 9.0";
  } else if (args.head_size % 8 != 0) {
    choice.reason = "the split kernel needs a head size that is a multiple of 8";
  } else if (SplitAttentionSharedBytes(choice.head_size_tile) + kSplitStaticShared >
             context.max_shared_bytes) {
    choice.reason = "too little shared memory for split products";
  } else if (args.max_seq_len <= 32 &&
             args.batch_size * args.num_heads <= context.num_multiprocessors) {
    // As measured on an H100 (benchmarks/gpu_profile.md): to split the numbers takes longer here
    // than tensor cores save.
    choice.reason = "float32 of few short sequences is faster by IEEE products";
  } else {
    choice.kind = AttentionKind::kSplit;
    choice.rows_per_block = 128;
    choice.reason = "float32 by split products";
  }
  return choice;
}

}  // namespace

std::vector<AttentionChoice> WarpgroupAttentionChoices(int64_t head_size) {
  if (head_size > 128) return {};
  AttentionChoice first;
  first.kind = AttentionKind::kWarpgroup;
  first.head_size_tile = HeadSizeTile(head_size);
  first.rows_per_block = 64;
  AttentionChoice second = first;
  if (first.head_size_tile == 32) return {first};
  if (first.head_size_tile != 64) {
    second.rows_per_block = 192;
    return {first, second};
  }
  second.keys_per_tile = 128;
  AttentionChoice persistent = second;
  persistent.rows_per_block = 192;
  return {first, second, persistent};
}

AttentionArgs MakeAttentionArgs(const EncoderConfig& config, const EncoderBatch& batch) {
  AttentionArgs args;
  args.dtype = config.dtype;
  args.batch_size = batch.batch_size;
  args.max_seq_len = batch.max_seq_len;
  args.num_heads = config.num_heads;
  args.head_size = config.head_size;
  args.seq_offsets = batch.packed ? batch.seq_offsets : nullptr;
  args.num_tokens = batch.rows();
  args.key_lengths = batch.packed ? nullptr : batch.key_lengths;
  args.mask = batch.attention_mask;
  args.to_float8 = config.fp8_mode != 0;
  return args;
}

AttentionChoice SelectAttention(const AttentionArgs& args, const LaunchContext& context) {
  AttentionChoice choice;
  if (args.head_size > 128) {
    choice.reason = "head size above 128";
    return choice;
  }
  choice.head_size_tile = HeadSizeTile(args.head_size);
  choice.kind = AttentionKind::kTiled;
  choice.rows_per_block = choice.head_size_tile <= 64 ? 64 : 32;
  if (SizeOf(args.dtype) != 2) return Float32Attention(args, choice, context);
  if (context.compute_capability < 80) {
    choice.reason = "the tensor core kernel needs compute capability 8.0";
  } else if (args.head_size % 8 != 0) {
    choice.reason = "the tensor core kernel needs a head size that is a multiple of 8";
  } else {
    choice.kind = AttentionKind::kTensorCore;
    if (args.max_seq_len <= kShortSequence) {
      choice.rows_per_block = choice.keys_per_tile = kShortSequence;
      choice.reason = "16-bit type of short sequences";
      return choice;
    }
    // Code of sm_90a runs on compute capability 9.0 alone.
    if (context.compute_capability != 90) {
      choice.reason = "wgmma needs compute capability 9.0";
    } else if (args.mask != nullptr) {
      choice.reason = "the wgmma kernel takes no mask";
    } else if (kWarpgroupMinShared > context.max_shared_bytes) {
      choice.reason = "too little shared memory for wgmma";
    } else if (std::max(args.batch_size, args.num_heads) > kMaxGridYZ) {
      choice.reason = "too many sequences or heads for the wgmma kernel's grid";
    } else {
      return WarpgroupAttention(args, context);
    }
    // 128 rows use each key twice as often; 64 rows fill the device earlier.
    const int64_t large_blocks = (args.max_seq_len + 127) / 128 * args.batch_size * args.num_heads;
    const bool large = args.max_seq_len > 64 && large_blocks >= context.num_multiprocessors &&
                       MmaSharedBytes(choice.head_size_tile, 128, 64) <= context.max_shared_bytes &&
                       choice.head_size_tile <= 64;
    choice.rows_per_block = large ? 128 : 64;
  }
  return choice;
}

AttentionParams MakeAttentionParams(const AttentionArgs& args) {
  AttentionParams params;
  params.qkv = args.qkv;
  params.output = args.output;
  params.out_scale = args.out_scale;
  params.to_float8 = args.to_float8;
  params.seq_offsets = args.seq_offsets;
  params.key_lengths = args.key_lengths;
  params.mask = args.mask;
  params.mask_keys = args.mask_keys;
  params.batch_size = static_cast<int>(args.batch_size);
  params.max_seq_len = static_cast<int>(args.max_seq_len);
  params.num_heads = static_cast<int>(args.num_heads);
  params.head_size = static_cast<int>(args.head_size);
  params.row_tiles = 0;
  params.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.head_size)));
  return params;
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
  const AttentionParams params = MakeAttentionParams(args);
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
    case AttentionKind::kSplit:
      switch (choice.head_size_tile) {
        case 32:
          return LaunchSplit32(params, context);
        case 64:
          return LaunchSplit64(params, context);
        case 96:
          return LaunchSplit96(params, context);
        default:
          return LaunchSplit128(params, context);
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
