// Products of float16 or bfloat16 with what follows them. All pointers are device pointers, 16-byte
// aligned; all work is put on the context's stream, and nothing waits for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace ft {
namespace cuda {

inline bool IsHalf(DataType dtype) {
  return dtype == DataType::kFloat16 || dtype == DataType::kBFloat16;
}

// Kernels of CUTLASS and those by clusters take kBias and both GELUs, with kBias a residual too;
// none takes all of these with all tiles.
enum class HalfGemmKind {
  kCublasLt,          // any size, every epilogue but kBiasGeluErf, float32 too
  kHopper128x192,     // CUTLASS, wgmma and tensor copies; compute capability 9.0 alone. Two
                      // warpgroups have a tile each, one multiplies while the other stores
  kHopper128,         // the same, tiles of 128x128
  kHopper64x192,      // the same
  kHopperOne128x192,  // the same, but both warpgroups share the one tile that a block has
  kHopper64x96,       // one warpgroup, for few tiles
  kHopper64,          // the same, tiles of 64x64, for fewer
  // cluster/cluster_gemm.h, by tile
  kCluster64x64Parts4,
  kCluster64x64Parts2,
  kCluster128x96Parts2,
  kCluster128x96Pair,
  kCluster128x144Pair,
};
inline constexpr int kNumHalfGemmKinds = 12;

const char* Name(HalfGemmKind kind);

// The GELUs of these kernels are right to this part of |x|: 2^-12 by the hardware's tanh, 1.9e-5
// by the polynomial of that of erf (gemm/gelu.cuh). float16 rounds to 2^-11.
inline constexpr double kHalfGeluError = 2.7e-4;

// Whether `kind` can compute it on this device; reads sizes and types alone.
bool HalfGemmSupported(const GemmShape& shape, HalfGemmKind kind, const LaunchContext& context);

// The kind that should be the fastest of those that are supported. Of float32, and where none is:
// kCublasLt.
HalfGemmKind SelectHalfGemm(const GemmShape& shape, const LaunchContext& context);

// args.output = epilogue(args.x args.w^T + args.bias + args.residual), by `gemm` if `kind` is
// kCublasLt.
Status RunHalfGemm(const GemmArgs& args, HalfGemmKind kind, Gemm* gemm,
                   const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
