#include "tf_ops/cuda/attention/wgmma.cuh"

namespace ft {
namespace cuda {

Status LaunchWgmma128(DataType dtype, const AttentionChoice& choice, const AttentionParams& params,
                      int64_t num_tokens, const LaunchContext& context) {
  return LaunchWgmmaHeadSize<128>(dtype, choice, params, num_tokens, context);
}

}  // namespace cuda
}  // namespace ft
