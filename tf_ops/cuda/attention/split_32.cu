#include "tf_ops/cuda/attention/split.cuh"

namespace ft {
namespace cuda {

Status LaunchSplit32(int rows_per_block, const AttentionParams& params,
                     const LaunchContext& context) {
  return LaunchSplitHeadSize<32>(rows_per_block, params, context);
}

}  // namespace cuda
}  // namespace ft
