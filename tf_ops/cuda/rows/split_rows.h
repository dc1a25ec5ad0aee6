// Splitting of rows and of weights for gemm/split/split_gemm.h. All pointers are device pointers,
// 16-byte aligned unless said otherwise; all work is put on the context's stream, and nothing waits
// for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

struct SplitRowsArgs {
  int64_t rows = 0, k = 0;
  const float* x = nullptr;  // [rows,k], x_pitch floats apart
  int64_t x_pitch = 0;
  bool has_activation = false;
  Activation activation = Activation::kGeluTanh;
  void* split = nullptr;   // split rows [rows,k]; may be x, where x_pitch is SplitPitch(k)
  float* scale = nullptr;  // [rows]
};

// split, scale = activation(x). k is at most what SplitSizesSupported lets pass.
Status LaunchSplitRows(const SplitRowsArgs& args, const LaunchContext& context);

// Splits the columns of w [k,n] (no alignment needed): `split` are rows [n,k], `scale` [n].
Status LaunchSplitWeights(const float* w, int64_t k, int64_t n, void* split, float* scale,
                          const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
