// Attention of one short sequence and the product behind it, in one kernel. All pointers are device
// pointers, 16-byte aligned unless said otherwise; all work is put on the context's stream, and
// nothing waits for it.
#pragma once

#include "tf_ops/cuda/attention/attention.h"

namespace ft {
namespace cuda {

struct AttentionProjectionArgs {
  // Of one sequence; `output` is not used, out_scale only with weights of 8 bits.
  AttentionArgs attention;
  DataType w_dtype = DataType::kFloat16;  // attention.dtype, int8 or float8
  const void* w = nullptr;                // [n,H]: the weights of the product
  int64_t n = 0;                          // columns of the result
  int64_t rows = 0;                       // of the result; those beyond the sequence are undefined
  // float32, of int8 int32 [AttentionProjectionParts,rows,n], which add up to context x w^T.
  void* partials = nullptr;
};

// The partial sums that `num_heads` heads give.
int AttentionProjectionParts(int64_t num_heads);

// Whether LaunchAttentionProjection can compute it on this device: 16-bit types, one sequence of at
// most 32 rows without a mask, head size 32 or 64, at most 32 heads. Reads no memory.
bool AttentionProjectionSupported(const AttentionProjectionArgs& args,
                                  const LaunchContext& context);

// The weights are fetched while the previous kernel still runs. The context is rounded to the
// weights' type, as where it is stored.
Status LaunchAttentionProjection(const AttentionProjectionArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
