#include "tf_ops/cuda/attention/split.cuh"

namespace ft {
namespace cuda {

Status LaunchSplit64(const AttentionParams& params, const LaunchContext& context) {
  return LaunchSplitAttention<64>(params, context);
}

}  // namespace cuda
}  // namespace ft
