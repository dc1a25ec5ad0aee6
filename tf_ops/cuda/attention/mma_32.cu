#include "tf_ops/cuda/attention/mma.cuh"

namespace ft {
namespace cuda {

Status LaunchMma32(DataType dtype, int rows_per_block, const AttentionParams& params,
                   const LaunchContext& context) {
  return LaunchMmaHeadSize<32>(dtype, rows_per_block, params, context);
}

}  // namespace cuda
}  // namespace ft
