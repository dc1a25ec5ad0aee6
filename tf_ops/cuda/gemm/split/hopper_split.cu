#include "tf_ops/cuda/gemm/split/hopper.cuh"

namespace ft {
namespace cuda {

Status LaunchHopperSplit128(const SplitGemmArgs& args, const LaunchContext& context) {
  return hopper_split::Launch<hopper_split::Gemm128>(args, context);
}

Status LaunchHopperSplit64(const SplitGemmArgs& args, const LaunchContext& context) {
  return hopper_split::Launch<hopper_split::Gemm64>(args, context);
}

}  // namespace cuda
}  // namespace ft
