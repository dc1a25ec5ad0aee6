// Masks as PyTorch's models have them, on the device: which keys a query sees.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// A mask of [batch_size, queries, seq_len] elements, of any strides.
struct SeenKeys {
  const void* data = nullptr;
  // Floats, added to the scores: 0 where a key is seen. Else bytes: 0 where it is not.
  bool is_float = false;
  int64_t batch_size = 0;
  int64_t queries = 0;  // seq_len; or 1: the same for all
  int64_t seq_len = 0;
  int64_t batch_stride = 0, query_stride = 0, key_stride = 0;  // in elements
};

// What is added to the score of a key that is not seen is at most this.
inline constexpr float kNotSeen = -10000.0f;

// What SummarizeSeenKeys finds in a sequence, beside the keys up to the last that its first query
// sees.
enum SeenKeysFlag : int32_t {
  kHasGaps = 1,        // the first query does not see some key before its last
  kQueriesDiffer = 2,  // another query sees other keys
  kHasBias = 4,        // a float that is neither 0 nor at most kNotSeen
};

// summary: int32 [batch_size,2] on the device, the number of keys and the flags.
Status LaunchSummarizeSeenKeys(const SeenKeys& seen, int32_t* summary,
                               const LaunchContext& context);

// Writes an encoder's mask, [batch_size, seq_len, seq_len] of `dtype`: 1 where a key is seen, else
// 0.
Status LaunchWriteMask(const SeenKeys& seen, DataType dtype, void* mask,
                       const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
