#include "tf_ops/cuda/gemm/norm/hopper.cuh"

namespace ft {
namespace cuda {

HopperNorm HopperNormFloat8Half() { return hopper_norm::kFunctions<Float8, half>; }
HopperNorm HopperNormFloat8BFloat() { return hopper_norm::kFunctions<Float8, __nv_bfloat16>; }

}  // namespace cuda
}  // namespace ft
