#include "tf_ops/cuda/gemm/cluster/hopper.cuh"

namespace ft {
namespace cuda {

ClusterLauncher HopperClusterBFloat16Bias(ClusterTile tile) {
  return hopper_cluster::FindBiasLauncher<__nv_bfloat16>(tile);
}
ClusterLauncher HopperClusterBFloat16Residual(ClusterTile tile) {
  return hopper_cluster::FindResidualLauncher<__nv_bfloat16>(tile);
}
ClusterLauncher HopperClusterBFloat16Gelu(ClusterTile tile) {
  return hopper_cluster::FindGeluLauncher<__nv_bfloat16>(tile);
}

}  // namespace cuda
}  // namespace ft
