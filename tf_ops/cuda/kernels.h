// The CUDA kernels' launchers. All pointers are device pointers, 16-byte aligned unless said
// otherwise; all work is put on `stream` and no launcher synchronises. Shape letters: core/types.h.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "tf_ops/core/encoder.h"

namespace ft {
namespace cuda {

// Where kernels of one call go, and what the device can do.
struct LaunchContext {
  cudaStream_t stream = nullptr;
  int device = 0;
  int compute_capability = 0;  // 90 for 9.0
  int num_multiprocessors = 0;
  int max_shared_bytes = 0;  // of one block, opted in
  bool allow_tf32 = false;   // in float32 products
  // The next launch may overlap the stream's previous kernel (sm_90). False for the first kernel of
  // a call: what runs before it may be writing the weights, which kernels read ahead.
  bool overlap = false;
};

// The context of the current device for `execution`.
Status GetLaunchContext(const ExecutionContext& execution, LaunchContext* context);

// ---- Attention ----------------------------------------------------------------------------------

enum class AttentionKind {
  kWarpgroup,   // fused, wgmma, 16-bit types without mask, compute capability 9.0 alone
  kTensorCore,  // fused, mma.sync, 16-bit types
  kTiled,       // fused, float32 arithmetic, any type, head size up to 128
  kSimple,      // any head size
};

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
  void* output = nullptr;                // [T,H]
  const int32_t* seq_offsets = nullptr;  // int32 [B+1]: packed rows; null: padded, T = B*S
  int64_t num_tokens = -1;               // T, needed with seq_offsets
  const int32_t* key_lengths = nullptr;  // int32 [B] or null (all S keys); padded rows only
  const void* mask = nullptr;            // [B,S,S] or null
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

// ---- Bias, residual, layer norm -----------------------------------------------------------------

struct LayerNormArgs {
  DataType dtype = DataType::kFloat32;
  int64_t rows = 0, hidden_size = 0;
  // Either input [T,H] of dtype, or partials: float32 [num_partials,T,H] that are summed.
  const void* input = nullptr;
  const float* partials = nullptr;
  int num_partials = 0;
  const void* bias = nullptr;      // [H] or null
  const void* residual = nullptr;  // [T,H] or null
  const void* gamma = nullptr;     // [H]
  const void* beta = nullptr;      // [H]
  float epsilon = 0.f;
  void* output = nullptr;  // [T,H]
};

// output = LayerNorm(input + bias + residual) over H in one pass; float32 statistics about the
// mean.
Status LaunchLayerNorm(const LayerNormArgs& args, const LaunchContext& context);

// ---- Elementwise --------------------------------------------------------------------------------

// x = activation(x), num_elems of dtype, in place.
Status LaunchActivation(DataType dtype, Activation activation, void* x, int64_t num_elems,
                        const LaunchContext& context);

struct TransposeArgs {
  static constexpr int kMaxMatrices = 6;
  int num_matrices = 0;
  struct {
    const void* input = nullptr;  // [rows,cols]
    void* output = nullptr;       // [cols,rows]
    int rows = 0, cols = 0;
  } matrices[kMaxMatrices];
};

// Transposes several matrices of elements of `elem_bytes` 2 or 4 bytes (no alignment needed).
Status LaunchTranspose(const TransposeArgs& args, int elem_bytes, const LaunchContext& context);

// ---- GEMM with few rows -------------------------------------------------------------------------

struct SmallGemmArgs {
  DataType dtype = DataType::kFloat16;  // 16-bit types
  int64_t rows = 0, n = 0, k = 0;
  const void* x = nullptr;     // [rows,k]
  const void* w = nullptr;     // [n,k]
  const void* bias = nullptr;  // [n], with output
  void* output = nullptr;      // [rows,n] = activation(x w^T + bias), or null:
  float* partials = nullptr;   // [num_splits,rows,n], which add up to x w^T
  int num_splits = 1;          // of k; 1 with output
  bool has_activation = false;
  Activation activation = Activation::kGeluTanh;
};

// True if LaunchSmallGemm can compute it on this device.
bool SmallGemmSupported(const SmallGemmArgs& args, const LaunchContext& context);

// Splits of k that fill the device when partials are wanted.
int SmallGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context);

// x w^T for few rows: the weights are fetched while the previous kernel still runs.
Status LaunchSmallGemm(const SmallGemmArgs& args, const LaunchContext& context);

// ---- Padding ------------------------------------------------------------------------------------

// Stores `count` integers of the host in device memory. They travel as kernel parameters, so that
// `values` may be freed at once and the host never waits.
Status LaunchStoreIntegers(const int32_t* values, int64_t count, int32_t* output,
                           const LaunchContext& context);

// packed[offsets[b]+i] = padded[b*S+i] for i < the length of b. Rows of row_bytes bytes.
Status LaunchRemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                           int64_t max_seq_len, int64_t row_bytes, void* packed,
                           const LaunchContext& context);

// The inverse; the other rows of padded become 0.
Status LaunchRebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                            int64_t max_seq_len, int64_t row_bytes, void* padded,
                            const LaunchContext& context);

// padded[r + id_offsets[r]] = packed[r], zeros elsewhere. Entries that point outside are skipped.
Status LaunchScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                         int64_t padded_rows, int64_t row_bytes, void* padded,
                         const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
