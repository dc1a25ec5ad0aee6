// The instances of the kernel for Hopper, by the types of x and of the output, and of 16 bits by
// what follows the product: null where there is none of the tile. They count on what
// ClusterGemmSupported has checked.
#pragma once

#include "tf_ops/cuda/gemm/cluster/cluster_gemm.h"

namespace ft {
namespace cuda {

using ClusterLauncher = Status (*)(const ClusterGemmArgs&, const LaunchContext&);

ClusterLauncher HopperClusterFloat16Bias(ClusterTile tile);
ClusterLauncher HopperClusterFloat16Residual(ClusterTile tile);
ClusterLauncher HopperClusterFloat16Gelu(ClusterTile tile);
ClusterLauncher HopperClusterBFloat16Bias(ClusterTile tile);
ClusterLauncher HopperClusterBFloat16Residual(ClusterTile tile);
ClusterLauncher HopperClusterBFloat16Gelu(ClusterTile tile);
ClusterLauncher HopperClusterFloat8Half(ClusterTile tile);
ClusterLauncher HopperClusterFloat8BFloat(ClusterTile tile);
ClusterLauncher HopperClusterInt8Half(ClusterTile tile);
ClusterLauncher HopperClusterInt8BFloat(ClusterTile tile);

}  // namespace cuda
}  // namespace ft
