// Rows and weights as halves.
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/split/split.cuh"
#include "tf_ops/cuda/rows/split_rows.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kNoActivation = -1;

// Activate<kGeluTanh> to 4 units in the last place, in a quarter of its instructions: with them the
// kernel would wait for arithmetic, not for memory.
__device__ __forceinline__ float FastGeluTanh(float x) {
  constexpr float kLinear = -2.f * 0.79788456080286536f * 1.4426950408889634f;
  return __fdividef(x, 1.f + FastExp2(x * fmaf(kLinear * 0.044715f, x * x, kLinear)));
}

// The branch is the same for all threads.
template <int kCount>
__device__ __forceinline__ void ActivateAll(int activation, float* x) {
  if (activation == static_cast<int>(Activation::kGeluTanh)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = FastGeluTanh(x[i]);
  } else if (activation == static_cast<int>(Activation::kGeluErf)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kGeluErf>(x[i]);
  } else if (activation == static_cast<int>(Activation::kRelu)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Activate<Activation::kRelu>(x[i]);
  }
}

// One row is owned by kThreads threads of a block; kRows rows per block. A thread keeps its
// kVectors vectors of the row in registers, so that `split` may be `x`. Requires k % 4 == 0 and
// SplitPitch(k) <= kThreads * kVectors * 4.
template <int kThreads, int kRows, int kVectors>
__global__ void __launch_bounds__(kThreads* kRows)
    SplitRowsKernel(const float* x, int64_t x_pitch, int activation, half* split, float* scale,
                    int64_t rows, int k) {
  static_assert(kThreads == 32 || kRows == 1, "a block's reduction is over all its threads");
  __shared__ float scratch[kThreads / 32];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreads;
  AllowNextKernel();
  WaitForPreviousKernel();
  if (row >= rows) return;  // whole warps (kThreads == 32) or, with kRows == 1, nobody

  float values[kVectors][4];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * 4;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (column < k) v = *reinterpret_cast<const float4*>(x + row * x_pitch + column);
    values[i][0] = v.x;
    values[i][1] = v.y;
    values[i][2] = v.z;
    values[i][3] = v.w;
  }
  ActivateAll<kVectors * 4>(activation, values[0]);
  const SplitScale powers =
      MakeSplitScale(BlockMax<kThreads>(LargestFinite<kVectors * 4>(values[0]), scratch));
  const float to_halves = powers.to_halves();
  const int pitch = static_cast<int>(SplitPitch(k));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * 4;
    if (column < pitch) StoreInSplitRow(split + row * 2 * pitch, column, values[i], to_halves);
  }
  if (thread == 0) scale[row] = powers.of_row();
}

// Any k whose row fits into shared memory: one block of 256 threads per row.
__global__ void __launch_bounds__(256)
    SplitRowsAnySizeKernel(const float* x, int64_t x_pitch, int activation, half* split,
                           float* scale, int k) {
  extern __shared__ float values[];  // [SplitPitch(k)]
  __shared__ float scratch[8];
  AllowNextKernel();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  const int pitch = static_cast<int>(SplitPitch(k));
  float largest = 0.f;
  for (int c = threadIdx.x; c < pitch; c += 256) {
    float value = c < k ? x[row * x_pitch + c] : 0.f;
    ActivateAll<1>(activation, &value);
    values[c] = value;
    largest = fmaxf(largest, LargestFinite<1>(&value));
  }
  const SplitScale powers = MakeSplitScale(BlockMax<256>(largest, scratch));
  for (int c = threadIdx.x * 4; c < pitch; c += 256 * 4) {
    StoreInSplitRow(split + row * 2 * pitch, c, values + c, powers.to_halves());
  }
  if (threadIdx.x == 0) scale[row] = powers.of_row();
}

// A block has 32 columns of w; 32x8 threads.
__global__ void __launch_bounds__(256)
    SplitWeightsKernel(const float* __restrict__ w, int k, int n, half* __restrict__ split,
                       float* __restrict__ scale) {
  __shared__ float tile[kSplitGroup][33];
  __shared__ float largest[8][32];
  const int first = blockIdx.x * 32;
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const auto load = [&](int row) {
    return row < k && first + x < n ? w[static_cast<int64_t>(row) * n + first + x] : 0.f;
  };
  float mine = 0.f;
  for (int row = y; row < k; row += 8) {
    const float value = load(row);
    mine = fmaxf(mine, LargestFinite<1>(&value));
  }
  largest[y][x] = mine;
  __syncthreads();
  // From here on a thread has four neighbours of one channel.
  const int channel = threadIdx.x / 8, within = threadIdx.x % 8 * 4;
  float of_channel = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) of_channel = fmaxf(of_channel, largest[i][channel]);
  const SplitScale powers = MakeSplitScale(of_channel);
  half* const to = split + static_cast<int64_t>(first + channel) * 2 * SplitPitch(k);
  for (int row = 0; row < k; row += kSplitGroup) {
    __syncthreads();
    for (int i = y; i < kSplitGroup; i += 8) tile[i][x] = load(row + i);
    __syncthreads();
    const float four[] = {tile[within][channel], tile[within + 1][channel],
                          tile[within + 2][channel], tile[within + 3][channel]};
    if (first + channel < n) StoreInSplitRow(to, row + within, four, powers.to_halves());
  }
  if (first + channel < n && within == 0) scale[first + channel] = powers.of_channel();
}

template <int kThreads, int kRows, int kVectors>
Status LaunchRegisters(const SplitRowsArgs& args, int activation, const LaunchContext& context) {
  return Launch(SplitRowsKernel<kThreads, kRows, kVectors>, Grid{(args.rows + kRows - 1) / kRows},
                kThreads * kRows, 0, context, args.x, args.x_pitch, activation,
                static_cast<half*>(args.split), args.scale, args.rows, static_cast<int>(args.k));
}

}  // namespace

Status LaunchSplitRows(const SplitRowsArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  const int activation = args.has_activation ? static_cast<int>(args.activation) : kNoActivation;
  const int64_t vectors = SplitPitch(args.k) / 4;
  if (args.k % 4 != 0 || args.x_pitch % 4 != 0 || vectors > 2048) {
    return Launch(SplitRowsAnySizeKernel, Grid{args.rows}, 256, SplitPitch(args.k) * 4, context,
                  args.x, args.x_pitch, activation, static_cast<half*>(args.split), args.scale,
                  static_cast<int>(args.k));
  }
  // Few rows: a whole block per row, for the latency. Many: a warp per row, where registers do.
  const bool very_few = args.rows <= 2 * context.num_multiprocessors;
  const bool few = args.rows <= 8 * context.num_multiprocessors;
  if (!few && vectors <= 96) return LaunchRegisters<32, 4, 3>(args, activation, context);
  if (!few && vectors <= 192) return LaunchRegisters<32, 4, 6>(args, activation, context);
  if (!few && vectors <= 256) return LaunchRegisters<32, 4, 8>(args, activation, context);
  if (vectors <= 128) return LaunchRegisters<128, 1, 1>(args, activation, context);
  if (vectors <= 256) return LaunchRegisters<256, 1, 1>(args, activation, context);
  if (very_few && vectors <= 768) return LaunchRegisters<768, 1, 1>(args, activation, context);
  if (very_few && vectors <= 1024) return LaunchRegisters<1024, 1, 1>(args, activation, context);
  if (vectors <= 768) return LaunchRegisters<256, 1, 3>(args, activation, context);
  if (vectors <= 1024) return LaunchRegisters<256, 1, 4>(args, activation, context);
  return LaunchRegisters<256, 1, 8>(args, activation, context);
}

Status LaunchSplitWeights(const float* w, int64_t k, int64_t n, void* split, float* scale,
                          const LaunchContext& context) {
  LaunchContext first = context;
  first.overlap = false;
  return Launch(SplitWeightsKernel, Grid{(n + 31) / 32}, 256, 0, first, w, static_cast<int>(k),
                static_cast<int>(n), static_cast<half*>(split), scale);
}

}  // namespace cuda
}  // namespace ft
