#include "tf_ops/cuda/gemm/cluster/hopper.cuh"

namespace ft {
namespace cuda {

ClusterLauncher HopperClusterFloat8Half(ClusterTile tile) {
  return hopper_cluster::FindScaledLauncher<Float8, half>(tile);
}
ClusterLauncher HopperClusterFloat8BFloat(ClusterTile tile) {
  return hopper_cluster::FindScaledLauncher<Float8, __nv_bfloat16>(tile);
}

}  // namespace cuda
}  // namespace ft
