#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8BFloatFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::GemmFew<cutlass::bfloat16_t>>(args, context);
}

}  // namespace cuda
}  // namespace ft
