// The instances of the kernel for Hopper, by the types of x and of the output. They count on what
// NormGemmSupported has checked.
#pragma once

#include "tf_ops/cuda/gemm/norm/norm_gemm.h"

namespace ft {
namespace cuda {

// How many groups of blocks, which have all columns of their rows, a device runs at a time, and the
// columns of a block.
struct NormGroups {
  int count, block_columns;
};

struct HopperNorm {
  Status (*launch)(const NormGemmArgs&, NormGemmKind, const LaunchContext&);
  Status (*find_groups)(const NormGemmArgs&, NormGemmKind, const LaunchContext&, NormGroups*);
};

HopperNorm HopperNormFloat8Half();
HopperNorm HopperNormFloat8BFloat();
HopperNorm HopperNormInt8Half();
HopperNorm HopperNormInt8BFloat();

}  // namespace cuda
}  // namespace ft
