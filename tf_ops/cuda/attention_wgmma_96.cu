#include "tf_ops/cuda/attention_wgmma.cuh"

namespace ft {
namespace cuda {
namespace {

template <typename T>
Status LaunchType(DataType dtype, const AttentionChoice& choice, const AttentionParams& params,
                  int64_t num_tokens, const LaunchContext& context) {
  const auto launch = [&](auto config) {
    return LaunchWgmma<decltype(config)>(dtype, params, num_tokens, context);
  };
  switch (choice.variant) {
    case 0:
      return launch(WgmmaConfig<T, 96, 3, 64, 4, 1, false>());
    case 1:
      return launch(WgmmaConfig<T, 96, 1, 64, 2, 2, false>());
    default:
      return NoSuchWgmma(choice);
  }
}

}  // namespace

Status LaunchWgmma96(DataType dtype, const AttentionChoice& choice, const AttentionParams& params,
                     int64_t num_tokens, const LaunchContext& context) {
  return dtype == DataType::kFloat16
             ? LaunchType<half>(dtype, choice, params, num_tokens, context)
             : LaunchType<__nv_bfloat16>(dtype, choice, params, num_tokens, context);
}

}  // namespace cuda
}  // namespace ft
