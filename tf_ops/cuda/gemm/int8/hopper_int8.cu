#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Integer128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<int8_t>>(args, context);
}

Status LaunchHopperInt8Integer64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<int8_t>>(args, context);
}

Status LaunchHopperInt8IntegerFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::GemmFew<int8_t>>(args, context);
}

Status LaunchHopperInt8Gelu128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<int8_t, Int8Activation::kGeluTanh>>(args, context);
}

Status LaunchHopperInt8GeluErf128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<int8_t, Int8Activation::kGeluErf>>(args, context);
}

Status LaunchHopperInt8Activated64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<int8_t, hopper::kAnyActivation>>(args, context);
}

}  // namespace cuda
}  // namespace ft
