#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperFloat8ActivatedFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8GemmFew<hopper::Float8>>(args, context);
}

}  // namespace cuda
}  // namespace ft
