#include "tf_ops/cuda/attention/split.cuh"

namespace ft {
namespace cuda {

Status LaunchSplit96(const AttentionParams& params, const LaunchContext& context) {
  return LaunchSplitAttention<96>(params, context);
}

}  // namespace cuda
}  // namespace ft
