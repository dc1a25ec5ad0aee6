// Products by clusters of blocks, which share the work on a tile or what they read. half_gemm.h and
// int8_gemm.h choose them. Compute capability 9.0 alone.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace ft {
namespace cuda {

// What a cluster computes, rows x columns of the output: a tile whose blocks have a part of k each,
// or two tiles one below the other, whose blocks fetch the rows of w for each other.
enum class ClusterTile {
  k64x64Parts4,   // four parts of k
  k64x64Parts2,   // two parts of k
  k128x96Parts2,  // the same
  k64x96Pair,     // two tiles
  k128x96Pair,    // the same
  k128x144Pair,   // the same
};

// Of 16 bits: output = epilogue(x w^T + bias + residual), kBias with a residual or without, and
// both GELUs without, which are right to kHalfGeluError. Of 8 bits: output = x w^T * scale + bias.
struct ClusterGemmArgs {
  DataType input_dtype = DataType::kFloat16;   // of x and w: float16, bfloat16, int8 or float8
  DataType output_dtype = DataType::kFloat16;  // float16 or bfloat16; of 16 bits input_dtype
  int64_t rows = 0, n = 0, k = 0;
  GemmEpilogue epilogue = GemmEpilogue::kBias;
  const void* x = nullptr;         // [rows,k]
  const void* w = nullptr;         // [n,k]
  const float* scale = nullptr;    // [n], of 8 bits alone
  const void* bias = nullptr;      // [n]: output_dtype, of 8 bits float32 or null
  const void* residual = nullptr;  // [rows,n] or null
  void* output = nullptr;          // [rows,n]
};

const char* Name(ClusterTile tile);

// Blocks of a launch.
int64_t ClusterBlocks(ClusterTile tile, int64_t rows, int64_t n);

// Whether a kernel can compute it on this device; reads sizes, types and epilogue, and whether
// there is to be a residual.
bool ClusterGemmSupported(const ClusterGemmArgs& args, bool has_residual, ClusterTile tile,
                          const LaunchContext& context);

Status LaunchClusterGemm(const ClusterGemmArgs& args, ClusterTile tile,
                         const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
