#include "tf_ops/cuda/gemm/cluster/hopper.cuh"

namespace ft {
namespace cuda {

ClusterLauncher HopperClusterFloat16Bias(ClusterTile tile) {
  return hopper_cluster::FindBiasLauncher<half>(tile);
}
ClusterLauncher HopperClusterFloat16Residual(ClusterTile tile) {
  return hopper_cluster::FindResidualLauncher<half>(tile);
}
ClusterLauncher HopperClusterFloat16Gelu(ClusterTile tile) {
  return hopper_cluster::FindGeluLauncher<half>(tile);
}

}  // namespace cuda
}  // namespace ft
