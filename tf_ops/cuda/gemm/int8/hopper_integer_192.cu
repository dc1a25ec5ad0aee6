#include "tf_ops/cuda/gemm/int8/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperInt8Integer192(const Int8GemmArgs& args, const LaunchContext& context) {
  return hopper::Launch<hopper::Gemm192<int8_t>>(args, context);
}

}  // namespace cuda
}  // namespace ft
