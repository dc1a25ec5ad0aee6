// The instances of CUTLASS's kernel, by tile. They count on sizes that SplitGemmSupported has
// checked.
#pragma once

#include "tf_ops/cuda/gemm/split/split_gemm.h"

namespace ft {
namespace cuda {

Status LaunchHopperSplit128(const SplitGemmArgs&, const LaunchContext&);
Status LaunchHopperSplit64(const SplitGemmArgs&, const LaunchContext&);

}  // namespace cuda
}  // namespace ft
