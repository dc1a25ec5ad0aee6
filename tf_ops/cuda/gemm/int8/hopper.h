// The instances of CUTLASS's kernel: of integers or float8, output type, then tile. Those named
// Activated and the kernels with the smallest tiles compute any activation, Gelu128 kGeluTanh,
// GeluErf128 kGeluErf, the others none. They count on sizes that Int8GemmSupported has checked.
#pragma once

#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Integer128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8Gelu128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8GeluErf128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8Integer64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8Activated64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8IntegerFew(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8Half128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8Half64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8HalfFew(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8BFloat128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8BFloat64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperInt8BFloatFew(const Int8GemmArgs&, const LaunchContext&);
// float32, for comparisons and small batches: one tile.
Status LaunchHopperInt8Float64(const Int8GemmArgs&, const LaunchContext&);

Status LaunchHopperFloat8Gelu128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8GeluErf128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8Activated64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8ActivatedFew(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8Half128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8Half64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8HalfFew(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8BFloat128(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8BFloat64(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8BFloatFew(const Int8GemmArgs&, const LaunchContext&);
Status LaunchHopperFloat8Float64(const Int8GemmArgs&, const LaunchContext&);

}  // namespace cuda
}  // namespace ft
