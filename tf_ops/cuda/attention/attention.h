// Attention of one layer. All pointers are device pointers, 16-byte aligned unless said
// otherwise; all work is put on the context's stream, and nothing waits for it.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

enum class AttentionKind {
  kWarpgroup,   // fused, wgmma, 16-bit types without mask, compute capability 9.0 alone
  kTensorCore,  // fused, mma.sync, 16-bit types
  kSplit,       // fused, mma.sync, float32 by split products with float32's accuracy
  kTiled,       // fused, float32 arithmetic, any type, head size up to 128
  kSimple,      // any head size
};

// Sequences of up to this many rows have kernels of their own (benchmarks/gpu_profile.md).
inline constexpr int kShortSequence = 32;

struct AttentionChoice {
  AttentionKind kind = AttentionKind::kSimple;
  int head_size_tile = 0;  // head size the kernel is built for
  int rows_per_block = 0;  // query rows
  int keys_per_tile = 64;
  const char* reason = "";
};

struct AttentionArgs {
  DataType dtype = DataType::kFloat32;
  int64_t batch_size = 0, max_seq_len = 0, num_heads = 0, head_size = 0;
  const void* qkv = nullptr;             // [T,3H]: query, key, value of a row side by side
  void* output = nullptr;                // [T,H], of dtype; with out_scale int8 or float8
  const float* out_scale = nullptr;      // one number: output times it is rounded
  bool to_float8 = false;                // with out_scale
  const int32_t* seq_offsets = nullptr;  // int32 [B+1]: packed rows; null: padded, T = B*S
  int64_t num_tokens = -1;               // T, needed with seq_offsets
  const int32_t* key_lengths = nullptr;  // int32 [B] or null (all S keys); padded rows only
  const void* mask = nullptr;            // [B,S,S] or null
  bool ieee_float32 = false;             // float32: no split products
  // Of LaunchFindMaskKeys, or null. With a mask only sequences whose mask is no number of keys are
  // computed, without one only the others, with that number: two launches compute all.
  const int32_t* mask_keys = nullptr;
};

// A layer's attention in `batch`, but for qkv, output and mask_keys.
AttentionArgs MakeAttentionArgs(const EncoderConfig& config, const EncoderBatch& batch);

// Integers that LaunchFindMaskKeys stores for a sequence.
constexpr int kMaskParts = 8;

// True if attention without the mask gains more than finding keys costs.
bool FindsMaskKeys(const AttentionArgs& args);

// mask_keys[B,kMaskParts]: the least of a sequence's is n > 0 if the mask of all its rows lets keys
// 0 to n - 1 through and no other, else -1.
Status LaunchFindMaskKeys(const AttentionArgs& args, int32_t* mask_keys,
                          const LaunchContext& context);

// Chooses the kernel for sizes, which optional inputs there are, and the device; reads no memory.
AttentionChoice SelectAttention(const AttentionArgs& args, const LaunchContext& context);

// All kernels that kWarpgroup has for a head size; none above 128. For tests and measurements.
std::vector<AttentionChoice> WarpgroupAttentionChoices(int64_t head_size);

// output = softmax(q k^T / sqrt(D) + (1 - mask) * -10000) v, float32 inside. No keys: output 0.
Status LaunchAttention(const AttentionArgs& args, const AttentionChoice& choice,
                       const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
