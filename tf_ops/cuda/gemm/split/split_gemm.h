// float32 products on tensor cores, with float32's accuracy. All pointers are device pointers,
// 16-byte aligned unless said otherwise; all work is put on the context's stream, and nothing waits
// for it.
//
// Source: "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
// theoretical peak performance" (Ootomo, Yokota, 2022): x = high + low, both halves, keeps 22 bits;
// x w = high high + high low + low high keeps them; and as tensor cores truncate what they add up,
// they add up little at a time, the rest float32 arithmetic adds. Here each row of x and each
// output channel of w has a power of two of its own, which brings its largest magnitude near the
// end of half's range, so that any float32 number will do.
//
// What is lost: beside the largest magnitude m of its row of x or channel of w, a number below
// 2^-17 m has an error of up to 2^-39 m rather than 2^-23 of itself. It shows where such numbers
// alone decide a sum, because w is 0, or next to it, wherever x is large.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// A split vector of k numbers: of each group, the last one filled with zeros, its high halves, then
// its low halves.
inline constexpr int kSplitGroup = 32;

// Numbers of a vector with whole groups; a split vector has as many bytes as these in float32.
inline __host__ __device__ int64_t SplitPitch(int64_t k) {
  return (k + kSplitGroup - 1) / kSplitGroup * kSplitGroup;
}

// The only compute capability that has these kernels.
inline constexpr int kSplitCapability = 90;

// Whether they take the products of a layer of these sizes.
bool SplitSizesSupported(int64_t hidden_size, int64_t inner_size);

enum class SplitGemmKind {
  kHopper128,  // CUTLASS, wgmma, tiles of 128x128; compute capability 9.0 alone
  kHopper64,   // the same, tiles of 128x64
  kFewRows,    // gemm/few_rows.h
};
inline constexpr int kNumSplitGemmKinds = 3;

const char* Name(SplitGemmKind kind);

struct SplitGemmArgs {
  int64_t rows = 0, n = 0, k = 0;
  const void* x = nullptr;         // split rows [rows,k], SplitPitch(k) * 4 bytes each
  const float* x_scale = nullptr;  // [rows]
  const void* w = nullptr;         // split rows [n,k]
  const float* w_scale = nullptr;  // [n]
  const float* bias = nullptr;     // [n] or null
  float* output = nullptr;         // [rows,n], output_pitch floats apart, a multiple of 4
  int64_t output_pitch = 0;
  // More than 1: parts of k, SplitPitch(k) / kSplitGroup being a multiple. Then `output` is
  // [num_splits,rows,n], which add up to the product; without pitch or bias.
  int num_splits = 1;
};

// Parts of k that give all multiprocessors work, where there are few tiles.
int SplitGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context);

// Whether `kind` can compute it on this device; reads sizes alone.
bool SplitGemmSupported(const SplitGemmArgs& args, SplitGemmKind kind,
                        const LaunchContext& context);

// H100: up to so many rows a layer is the fastest with kFewRows for all products
// (benchmarks/gpu_profile.md).
inline constexpr int64_t kMaxSplitFewRows = 32;

// The kind that should be the fastest of those that are supported. Up to `few_rows` rows kFewRows;
// -1: where that was the fastest.
SplitGemmKind SelectSplitGemm(const SplitGemmArgs& args, int64_t few_rows,
                              const LaunchContext& context);

// output = x w^T + bias, or parts of x w^T.
Status LaunchSplitGemm(const SplitGemmArgs& args, SplitGemmKind kind, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
