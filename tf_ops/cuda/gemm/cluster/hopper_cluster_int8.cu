#include "tf_ops/cuda/gemm/cluster/hopper.cuh"

namespace ft {
namespace cuda {

ClusterLauncher HopperClusterInt8Half(ClusterTile tile) {
  return hopper_cluster::FindScaledLauncher<int8_t, half>(tile);
}
ClusterLauncher HopperClusterInt8BFloat(ClusterTile tile) {
  return hopper_cluster::FindScaledLauncher<int8_t, __nv_bfloat16>(tile);
}

}  // namespace cuda
}  // namespace ft
