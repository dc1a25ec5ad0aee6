#include "tf_ops/cuda/attention/mma.cuh"

namespace ft {
namespace cuda {

Status LaunchMma96(DataType dtype, int rows_per_block, const AttentionParams& params,
                   const LaunchContext& context) {
  return LaunchMmaHeadSize<96>(dtype, rows_per_block, params, context);
}

}  // namespace cuda
}  // namespace ft
