#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperFloat8Activated64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm64<hopper::Float8, hopper::kAnyActivation>>(args,
                                                                                      context);
}

}  // namespace cuda
}  // namespace ft
