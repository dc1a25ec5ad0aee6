#include "tf_ops/cuda/attention/split.cuh"

namespace ft {
namespace cuda {

Status LaunchSplit128(const AttentionParams& params, const LaunchContext& context) {
  return LaunchSplitAttention<128>(params, context);
}

}  // namespace cuda
}  // namespace ft
