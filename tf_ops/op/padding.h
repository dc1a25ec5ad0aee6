// Packing of the real rows of a padded batch, and its undoing, in host memory.
#pragma once

#include "tf_ops/core/encoder.h"

namespace ft::op {

// Copies the first offsets[b+1] - offsets[b] of the S rows of sequence b to row offsets[b] on.
// padded [B,S,row_bytes], packed [offsets[B],row_bytes].
void PackRows(const void* padded, const int32_t* offsets, int64_t batch_size, int64_t max_seq_len,
              int64_t row_bytes, void* packed, ThreadPool* pool);

// The other way; rows past a length become zero bytes.
void UnpackRows(const void* packed, const int32_t* offsets, int64_t batch_size, int64_t max_seq_len,
                int64_t row_bytes, void* padded, ThreadPool* pool);

}  // namespace ft::op
