// Products of few rows by 16-bit weights, or split ones (gemm/split/split_gemm.h). All pointers are
// device pointers, 16-byte aligned unless said otherwise; all work is put on the context's stream,
// and nothing waits for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

struct FewRowsGemmArgs {
  DataType dtype = DataType::kFloat16;  // float32: x and w are split rows
  int64_t rows = 0, n = 0, k = 0;
  const void* x = nullptr;         // [rows,k]
  const void* w = nullptr;         // [n,k]
  const float* x_scale = nullptr;  // [rows], float32 alone
  const float* w_scale = nullptr;  // [n], float32 alone
  const void* bias = nullptr;      // [n], with output
  void* output = nullptr;          // [rows,n] = activation(x w^T + bias), or null:
  int64_t output_pitch = 0;        // elements between its rows, a multiple of 2; 0: n
  float* partials = nullptr;       // [num_splits,rows,n], which add up to x w^T
  int num_splits = 1;              // of k; 1 with output
  bool has_activation = false;
  Activation activation = Activation::kGeluTanh;
};

// True if LaunchFewRowsGemm can compute it on this device.
bool FewRowsGemmSupported(const FewRowsGemmArgs& args, const LaunchContext& context);

// Splits of k that fill the device when partials are wanted, of 16-bit weights.
int FewRowsGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context);

// x w^T for few rows: the weights are fetched while the previous kernel still runs.
Status LaunchFewRowsGemm(const FewRowsGemmArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
