#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Half128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<cutlass::half_t>>(args, context);
}

Status LaunchHopperInt8Half64(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm64<cutlass::half_t>>(args, context);
}

Status LaunchHopperInt8HalfFew(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::GemmFew<cutlass::half_t>>(args, context);
}

}  // namespace cuda
}  // namespace ft
