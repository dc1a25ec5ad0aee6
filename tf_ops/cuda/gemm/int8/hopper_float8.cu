#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperFloat8Gelu128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm128<hopper::Float8, Int8Activation::kGeluTanh>>(args,
                                                                                          context);
}

Status LaunchHopperFloat8GeluErf128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm128<hopper::Float8, Int8Activation::kGeluErf>>(args,
                                                                                         context);
}

Status LaunchHopperFloat8Activated64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm64<hopper::Float8, hopper::kAnyActivation>>(args,
                                                                                      context);
}

Status LaunchHopperFloat8ActivatedFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8GemmFew<hopper::Float8>>(args, context);
}

}  // namespace cuda
}  // namespace ft
