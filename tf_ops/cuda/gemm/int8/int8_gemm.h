// Products of int8 or float8 matrices with what follows them (docs/int8.md, docs/fp8.md). All
// pointers are device pointers, 16-byte aligned unless said otherwise; all work is put on the
// context's stream, and nothing waits for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

enum class Int8GemmKind {
  kPlain,      // mma.sync, any size
  kHopper128,  // CUTLASS, wgmma and tensor copies, tiles of 128x128; compute capability 9.0 alone
  kHopper64,   // the same, tiles of 64x128
  kHopperFew,  // the same, tiles of 64x64, for few tiles
  kFewRows,    // mma.sync, numbers in registers alone, where a layer has few rows
  // cluster/cluster_gemm.h, by tile; to 16 bits alone
  kCluster64x64Parts4,
  kCluster64x64Parts2,
  kCluster64x96Pair,
  kCluster128x96Pair,
  kCluster128x144Pair,
};
inline constexpr int kNumInt8GemmKinds = 10;

const char* Name(Int8GemmKind kind);

// What an output of 8 bits may be the activation of, as igemm_config.in numbers it (docs/int8.md).
enum class Int8Activation {
  kNone = -1,
  kGeluTanh,  // both within |y| / 2048: an exact one takes longer than the product before it
  kGeluErf,
  kRelu,
  kGeluTanhExact,  // both to float32's rounding
  kGeluErfExact,
};

struct Int8GemmArgs {
  int64_t rows = 0, n = 0, k = 0;
  DataType input_dtype = DataType::kInt8;      // or float8: of x and w
  const void* x = nullptr;                     // [rows,k]
  const void* w = nullptr;                     // [n,k]
  const float* scale = nullptr;                // [n]
  const float* bias = nullptr;                 // [n] or null
  DataType output_dtype = DataType::kFloat32;  // or float16, bfloat16, input_dtype
  void* output = nullptr;                      // [rows,n]
  // With an output of 8 bits alone:
  Int8Activation activation = Int8Activation::kNone;
  const float* out_scale = nullptr;  // one number, of any alignment, or null: 1
  // kFewRows alone: more than 0 parts of k. Then `output` is int32 or, of float8, float32
  // [num_partials,rows,n], which add up to x w^T; nothing follows the sums.
  int num_partials = 0;
};

// Whether `kind` can compute it on this device; reads sizes and types alone.
bool Int8GemmSupported(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context);

// The kind that should be the fastest of those that are supported, but kFewRows, which pays where
// all products of a layer are of it (layer_plan.cc).
Int8GemmKind SelectInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context);

// y = x w^T * scale + bias, in float32 from the sum on, which is exact for integers. output = y, or
// for int8 the integer nearest to activation(y) * out_scale, half to even, within -128 and 127; NaN
// becomes -128; for float8 the number nearest to it, within -448 and 448; NaN stays.
Status LaunchInt8Gemm(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
