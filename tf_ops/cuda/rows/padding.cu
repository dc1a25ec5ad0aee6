// Removal of padding, and its inverse.
#include <algorithm>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/rows/padding.h"

namespace ft {
namespace cuda {
namespace {

// As many integers as fit into the 4 KiB of kernel parameters.
struct IntegerBlock {
  static constexpr int kSize = 1000;
  int32_t v[kSize];
};

__global__ void __launch_bounds__(256)
    StoreIntegersKernel(const __grid_constant__ IntegerBlock block, int count, int32_t* output) {
  for (int i = threadIdx.x; i < count; i += 256) output[i] = block.v[i];
}

// One warp per padded row copies words of W. kRebuild: packed -> padded, with zero rows where there
// is no token; else padded -> packed.
template <typename W, bool kRebuild>
__global__ void __launch_bounds__(128)
    PaddingKernel(const W* __restrict__ input, const int32_t* __restrict__ offsets,
                  int64_t padded_rows, int max_seq_len, int words, W* __restrict__ output) {
  AllowNextKernel();
  WaitForPreviousKernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= padded_rows) return;
  const int64_t sequence = row / max_seq_len;
  const int token = static_cast<int>(row % max_seq_len);
  const int32_t first = offsets[sequence];
  const bool valid = token < offsets[sequence + 1] - first;
  const int64_t packed_row = static_cast<int64_t>(first) + token;
  if (kRebuild) {
    for (int i = threadIdx.x % 32; i < words; i += 32) {
      output[row * words + i] = valid ? input[packed_row * words + i] : W{};
    }
  } else if (valid) {
    for (int i = threadIdx.x % 32; i < words; i += 32) {
      output[packed_row * words + i] = input[row * words + i];
    }
  }
}

template <typename W>
__global__ void __launch_bounds__(128)
    ScatterRowsKernel(const W* __restrict__ packed, const int32_t* __restrict__ id_offsets,
                      int64_t num_tokens, int64_t padded_rows, int words, W* __restrict__ padded) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= num_tokens) return;
  const int64_t target = row + id_offsets[row];
  if (target < 0 || target >= padded_rows) return;
  for (int i = threadIdx.x % 32; i < words; i += 32) {
    padded[target * words + i] = packed[row * words + i];
  }
}

// Calls `function` with a word type that rows of both tensors are aligned to, and their words.
template <typename Function>
Status DispatchWord(const void* from, const void* to, int64_t row_bytes, const Function& function) {
  constexpr int64_t kMaxRowBytes = INT32_MAX;
  if (row_bytes > kMaxRowBytes) {
    return Unimplemented("rows have ", row_bytes, " bytes; at most ", kMaxRowBytes);
  }
  const uint64_t all = reinterpret_cast<uint64_t>(from) | reinterpret_cast<uint64_t>(to) |
                       static_cast<uint64_t>(row_bytes);
  const int bytes = static_cast<int>(row_bytes);
  if (all % 16 == 0) return function(uint4(), bytes / 16);
  if (all % 4 == 0) return function(uint32_t(), bytes / 4);
  return function(uint16_t(), bytes / 2);
}

template <bool kRebuild>
Status LaunchPadding(const void* input, const int32_t* offsets, int64_t batch_size,
                     int64_t max_seq_len, int64_t row_bytes, void* output,
                     const LaunchContext& context) {
  const int64_t rows = batch_size * max_seq_len;
  if (rows == 0) return OkStatus();
  return DispatchWord(input, output, row_bytes, [&](auto word, int words) {
    using W = decltype(word);
    return Launch(PaddingKernel<W, kRebuild>, Grid{(rows + 3) / 4}, 128, 0, context,
                  static_cast<const W*>(input), offsets, rows, static_cast<int>(max_seq_len), words,
                  static_cast<W*>(output));
  });
}

}  // namespace

Status LaunchStoreIntegers(const int32_t* values, int64_t count, int32_t* output,
                           const LaunchContext& context) {
  LaunchContext first = context;
  first.overlap = false;
  for (int64_t at = 0; at < count; at += IntegerBlock::kSize) {
    IntegerBlock block;
    const int size = static_cast<int>(std::min<int64_t>(IntegerBlock::kSize, count - at));
    std::copy_n(values + at, size, block.v);
    FT_RETURN_IF_ERROR(
        Launch(StoreIntegersKernel, Grid{1}, 256, 0, first, block, size, output + at));
  }
  return OkStatus();
}

Status LaunchRemovePadding(const void* padded, const int32_t* offsets, int64_t batch_size,
                           int64_t max_seq_len, int64_t row_bytes, void* packed,
                           const LaunchContext& context) {
  return LaunchPadding<false>(padded, offsets, batch_size, max_seq_len, row_bytes, packed, context);
}

Status LaunchRebuildPadding(const void* packed, const int32_t* offsets, int64_t batch_size,
                            int64_t max_seq_len, int64_t row_bytes, void* padded,
                            const LaunchContext& context) {
  return LaunchPadding<true>(packed, offsets, batch_size, max_seq_len, row_bytes, padded, context);
}

Status LaunchScatterRows(const void* packed, const int32_t* id_offsets, int64_t num_tokens,
                         int64_t padded_rows, int64_t row_bytes, void* padded,
                         const LaunchContext& context) {
  if (padded_rows == 0) return OkStatus();
  FT_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(padded, 0, padded_rows * row_bytes, context.stream));
  if (num_tokens == 0) return OkStatus();
  LaunchContext first = context;
  first.overlap = false;
  return DispatchWord(packed, padded, row_bytes, [&](auto word, int words) {
    using W = decltype(word);
    return Launch(ScatterRowsKernel<W>, Grid{(num_tokens + 3) / 4}, 128, 0, first,
                  static_cast<const W*>(packed), id_offsets, num_tokens, padded_rows, words,
                  static_cast<W*>(padded));
  });
}

}  // namespace cuda
}  // namespace ft
