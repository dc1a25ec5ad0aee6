#include "tf_ops/cuda/attention/split.cuh"

namespace ft {
namespace cuda {

Status LaunchSplit32(const AttentionParams& params, const LaunchContext& context) {
  return LaunchSplitAttention<32>(params, context);
}

}  // namespace cuda
}  // namespace ft
