#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Gelu128(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm128<int8_t, Int8Activation::kGeluTanh>>(args, context);
}

}  // namespace cuda
}  // namespace ft
