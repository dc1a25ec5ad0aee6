#include "tf_ops/op/padding.h"

#include <cstring>

namespace ft::op {
namespace {

// memcpy and memset with null pointers are undefined even for 0 bytes.
void Copy(char* to, const char* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void Clear(char* to, int64_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

}  // namespace

void PackRows(const void* padded, const int32_t* offsets, int64_t batch_size, int64_t max_seq_len,
              int64_t row_bytes, void* packed, ThreadPool* pool) {
  pool->ParallelFor(batch_size, [&](int64_t b) {
    Copy(static_cast<char*>(packed) + offsets[b] * row_bytes,
         static_cast<const char*>(padded) + b * max_seq_len * row_bytes,
         (offsets[b + 1] - offsets[b]) * row_bytes);
  });
}

void UnpackRows(const void* packed, const int32_t* offsets, int64_t batch_size, int64_t max_seq_len,
                int64_t row_bytes, void* padded, ThreadPool* pool) {
  pool->ParallelFor(batch_size, [&](int64_t b) {
    char* to = static_cast<char*>(padded) + b * max_seq_len * row_bytes;
    const int64_t real_bytes = (offsets[b + 1] - offsets[b]) * row_bytes;
    Copy(to, static_cast<const char*>(packed) + offsets[b] * row_bytes, real_bytes);
    Clear(to + real_bytes, max_seq_len * row_bytes - real_bytes);
  });
}

}  // namespace ft::op
