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
      return launch(WgmmaConfig<T, 64, 2, 64, 6, 2, false>());
    case 1:
      return launch(WgmmaConfig<T, 64, 2, 64, 6, 2, true>());
    case 2:
      return launch(WgmmaConfig<T, 64, 3, 64, 6, 1, true>());
    case 3:
      return launch(WgmmaConfig<T, 64, 3, 128, 3, 1, false>());
    case 4:
      return launch(WgmmaConfig<T, 64, 1, 64, 4, 3, true>());
    case 5:
      return launch(WgmmaConfig<T, 64, 1, 128, 2, 3, false>());
    case 6:
      return launch(WgmmaConfig<T, 64, 2, 128, 3, 1, true>());
    case 7:
      return launch(WgmmaConfig<T, 64, 1, 64, 2, 4, false>());
    case 8:
      return launch(WgmmaConfig<T, 64, 2, 64, 6, 2, true, true>());
    case 9:
      return launch(WgmmaConfig<T, 64, 3, 64, 6, 1, true, true>());
    default:
      return NoSuchWgmma(choice);
  }
}

}  // namespace

Status LaunchWgmma64(DataType dtype, const AttentionChoice& choice, const AttentionParams& params,
                     int64_t num_tokens, const LaunchContext& context) {
  return dtype == DataType::kFloat16
             ? LaunchType<half>(dtype, choice, params, num_tokens, context)
             : LaunchType<__nv_bfloat16>(dtype, choice, params, num_tokens, context);
}

}  // namespace cuda
}  // namespace ft
