#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperFloat8Half128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm128<cutlass::half_t>>(args, context);
}

Status LaunchHopperFloat8Half64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8Gemm64<cutlass::half_t>>(args, context);
}

Status LaunchHopperFloat8HalfFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Float8GemmFew<cutlass::half_t>>(args, context);
}

}  // namespace cuda
}  // namespace ft
