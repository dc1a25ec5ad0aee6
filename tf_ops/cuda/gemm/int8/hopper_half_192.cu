#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Half192(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm192<cutlass::half_t>>(args, context);
}

}  // namespace cuda
}  // namespace ft
