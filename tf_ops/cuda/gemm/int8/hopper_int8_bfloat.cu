#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8BFloat128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperInt8BFloat64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperInt8BFloatFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::GemmFew<cutlass::bfloat16_t>>(args, context);
}

Status LaunchHopperInt8Float64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<float>>(args, context);
}

}  // namespace cuda
}  // namespace ft
