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
};
inline constexpr int kNumSplitGemmKinds = 2;

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
};

// Whether `kind` can compute it on this device; reads sizes alone.
bool SplitGemmSupported(const SplitGemmArgs& args, SplitGemmKind kind,
                        const LaunchContext& context);

// The kind that should be the fastest of those that are supported.
SplitGemmKind SelectSplitGemm(const SplitGemmArgs& args, const LaunchContext& context);

// output = x w^T + bias.
Status LaunchSplitGemm(const SplitGemmArgs& args, SplitGemmKind kind, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
