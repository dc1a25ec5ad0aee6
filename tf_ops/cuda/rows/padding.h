// Removal of padding, its inverse, and integers of the host. All pointers are device pointers,
// 16-byte aligned unless said otherwise; all work is put on the context's stream, and nothing waits
// for it.
#pragma once

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Stores `count` integers of the host in device memory. They travel as kernel parameters, so that
// `values` may be freed at once and the host never waits.
Status LaunchStoreIntegers(const int32_t* values, int64_t count, int32_t* output,
                           const LaunchContext& context);

// packed[offsets[b]+i] = padded[b*S+i] for i < the length of b. Rows of row_bytes bytes.
Status LaunchRemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                           int64_t max_seq_len, int64_t row_bytes, void* packed,
                           const LaunchContext& context);

// The inverse; the other rows of padded become 0.
Status LaunchRebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                            int64_t max_seq_len, int64_t row_bytes, void* padded,
                            const LaunchContext& context);

// padded[r + id_offsets[r]] = packed[r], zeros elsewhere. Entries that point outside are skipped.
Status LaunchScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                         int64_t padded_rows, int64_t row_bytes, void* padded,
                         const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
