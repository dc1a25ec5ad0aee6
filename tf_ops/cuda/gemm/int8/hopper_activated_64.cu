#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Activated64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<int8_t, hopper::kAnyActivation>>(args, context);
}

}  // namespace cuda
}  // namespace ft
