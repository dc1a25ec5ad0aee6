#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperFloat8BFloat128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm128<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperFloat8BFloat64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm64<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperFloat8BFloatFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8GemmFew<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperFloat8Float64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm64<float>>(args, context);
}

}  // namespace cuda
}  // namespace ft
