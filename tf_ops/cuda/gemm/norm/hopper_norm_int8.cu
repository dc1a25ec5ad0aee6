#include "tf_ops/cuda/gemm/norm/hopper.cuh"

namespace ft {
namespace cuda {

HopperNorm HopperNormInt8Half() { return hopper_norm::kFunctions<int8_t, half>; }
HopperNorm HopperNormInt8BFloat() { return hopper_norm::kFunctions<int8_t, __nv_bfloat16>; }

}  // namespace cuda
}  // namespace ft
