// Bias + residual + layer norm in one pass.
#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/split/split.cuh"
#include "tf_ops/cuda/norm/layer_norm.h"
#include "tf_ops/cuda/norm/normalize.cuh"
#include "tf_ops/cuda/norm/partials.cuh"

namespace ft {
namespace cuda {
namespace {

// One row is owned by kThreads threads of a block; kRows rows per block. A thread keeps its
// kVectors vectors of 16 bytes of the row in registers, so that the row is read once and the
// variance is that of the differences from the mean. Requires H % Vector16::kSize == 0 and H <=
// kThreads * kVectors * Vector16::kSize. kEarly: gamma and beta are read before the wait for the
// previous kernel. kAtOnce: all partial sums are on their way before the first is added, which
// takes registers.
template <typename T, int kThreads, int kRows, int kVectors, bool kEarly, bool kAtOnce>
__global__ void __launch_bounds__(kThreads* kRows)
    LayerNormKernel(const T* __restrict__ input, const float* __restrict__ partials,
                    int num_partials, const T* __restrict__ bias, const T* __restrict__ residual,
                    const T* __restrict__ gamma, const T* __restrict__ beta, float epsilon,
                    T* __restrict__ output, half* __restrict__ split,
                    float* __restrict__ split_scale, int64_t rows, int hidden) {
  static_assert(kThreads == 32 || kRows == 1, "a block's reduction is over all its threads");
  constexpr int kSize = Vector16<T>::kSize;
  __shared__ float scratch[2][kThreads / 32];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreads;

  AllowNextKernel();
  float x[kVectors][kSize];
  Vector16<T> scale[kVectors], shift[kVectors];
  const auto load_scale_and_shift = [&](int i, int column) {
    scale[i] = *reinterpret_cast<const Vector16<T>*>(gamma + column);
    shift[i] = *reinterpret_cast<const Vector16<T>*>(beta + column);
  };
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[i][e] = 0.f;
    if (column >= hidden) continue;
    if (kEarly) load_scale_and_shift(i, column);
    if (bias == nullptr) continue;
    const Vector16<T> b = *reinterpret_cast<const Vector16<T>*>(bias + column);
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[i][e] = ToFloat(b.v[e]);
  }
  WaitForPreviousKernel();
  if (row >= rows) return;  // whole warps (kThreads == 32) or, with kRows == 1, nobody

  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
    if (column >= hidden) continue;
    const auto load_residual = [&] {
      return *reinterpret_cast<const Vector16<T>*>(residual + row * hidden + column);
    };
    // On its way before anything is waited for, where there are registers for it.
    [[maybe_unused]] Vector16<T> early_residual;
    if (kEarly && residual != nullptr) early_residual = load_residual();
    if (input != nullptr) {
      const Vector16<T> p = *reinterpret_cast<const Vector16<T>*>(input + row * hidden + column);
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[i][e] += ToFloat(p.v[e]);
    }
    AddPartials<kAtOnce ? kMaxNormPartials : 1>(partials + row * hidden + column, num_partials,
                                                rows * hidden, x[i]);
    if (residual != nullptr) {
      const Vector16<T> p = kEarly ? early_residual : load_residual();
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[i][e] += ToFloat(p.v[e]);
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum += x[i][e];
  }
  NormalizeRow<kThreads>(sum, thread, hidden, epsilon, scratch, x);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
    if (column >= hidden) continue;
    if (!kEarly) load_scale_and_shift(i, column);
    Vector16<T> y;
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      x[i][e] = x[i][e] * ToFloat(scale[i].v[e]) + ToFloat(shift[i].v[e]);
      y.v[e] = FromFloat<T>(x[i][e]);
    }
    *reinterpret_cast<Vector16<T>*>(output + row * hidden + column) = y;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (split == nullptr) return;
    // Past the row there are zeros, which fill the last group.
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        if ((thread + i * kThreads) * kSize >= hidden) x[i][e] = 0.f;
      }
    }
    const SplitScale powers =
        MakeSplitScale(BlockMax<kThreads>(LargestFinite<kVectors * kSize>(x[0]), scratch[0]));
    const int pitch = static_cast<int>(SplitPitch(hidden));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (thread + i * kThreads) * kSize;
      if (column >= pitch) continue;
      StoreInSplitRow(split + row * 2 * pitch, column, x[i], powers.to_halves());
    }
    if (thread == 0) split_scale[row] = powers.of_row();
  }
}

// Any H: one block of 256 threads per row; the row is read three times.
template <typename T>
__global__ void __launch_bounds__(256)
    LayerNormAnySizeKernel(const T* __restrict__ input, const float* __restrict__ partials,
                           int num_partials, const T* __restrict__ bias,
                           const T* __restrict__ residual, const T* __restrict__ gamma,
                           const T* __restrict__ beta, float epsilon, T* __restrict__ output,
                           int64_t rows, int hidden) {
  __shared__ float scratch[2][8];
  AllowNextKernel();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  const auto value = [&](int column) {
    const int64_t at = row * hidden + column;
    float x = input != nullptr ? ToFloat(input[at]) : 0.f;
    for (int part = 0; part < num_partials; ++part) x += partials[part * rows * hidden + at];
    if (bias != nullptr) x += ToFloat(bias[column]);
    if (residual != nullptr) x += ToFloat(residual[at]);
    return x;
  };
  float sum = 0.f;
  for (int c = threadIdx.x; c < hidden; c += 256) sum += value(c);
  const float mean = BlockSum<256>(sum, scratch[0]) / hidden;
  float squares = 0.f;
  for (int c = threadIdx.x; c < hidden; c += 256) {
    const float difference = value(c) - mean;
    squares += difference * difference;
  }
  const float scale = rsqrtf(BlockSum<256>(squares, scratch[1]) / hidden + epsilon);
  for (int c = threadIdx.x; c < hidden; c += 256) {
    output[row * hidden + c] =
        FromFloat<T>((value(c) - mean) * scale * ToFloat(gamma[c]) + ToFloat(beta[c]));
  }
}

template <typename T, int kThreads, int kRows, int kVectors, bool kEarly, bool kAtOnce = false>
Status LaunchRegisters(const LayerNormArgs& args, const LaunchContext& context) {
  if constexpr (kRows == 1 && !kAtOnce) {
    if (args.num_partials > 1) {
      return LaunchRegisters<T, kThreads, kRows, kVectors, kEarly, true>(args, context);
    }
  }
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  return Launch(LayerNormKernel<T, kThreads, kRows, kVectors, kEarly, kAtOnce>, Grid{blocks},
                kThreads * kRows, 0, context, static_cast<const T*>(args.input), args.partials,
                args.num_partials, static_cast<const T*>(args.bias),
                static_cast<const T*>(args.residual), static_cast<const T*>(args.gamma),
                static_cast<const T*>(args.beta), args.epsilon, static_cast<T*>(args.output),
                static_cast<half*>(args.split), args.split_scale, args.rows,
                static_cast<int>(args.hidden_size));
}

// Vectors of a row, at most, that LayerNormKernel takes.
constexpr int64_t kMaxVectors = 1024;

// A warp a row, kRows of them a block, of kMaxWarpVectors at most.
template <typename T, int kRows, bool kEarly>
Status LaunchWarps(const LayerNormArgs& args, int64_t vectors, const LaunchContext& context) {
  if (vectors <= 32) return LaunchRegisters<T, 32, kRows, 1, kEarly>(args, context);
  if (vectors <= 64) return LaunchRegisters<T, 32, kRows, 2, kEarly>(args, context);
  if (vectors <= 96) return LaunchRegisters<T, 32, kRows, 3, kEarly>(args, context);
  if (vectors <= 128) return LaunchRegisters<T, 32, kRows, 4, kEarly>(args, context);
  if (vectors <= 192) return LaunchRegisters<T, 32, kRows, 6, kEarly>(args, context);
  return LaunchRegisters<T, 32, kRows, 8, kEarly>(args, context);
}

template <typename T>
Status LaunchTyped(const LayerNormArgs& args, const LaunchContext& context) {
  constexpr int kSize = Vector16<T>::kSize;
  const int64_t vectors = args.hidden_size / kSize;
  if (args.hidden_size % kSize != 0 || vectors > kMaxVectors) {
    return Launch(LayerNormAnySizeKernel<T>, Grid{args.rows}, 256, 0, context,
                  static_cast<const T*>(args.input), args.partials, args.num_partials,
                  static_cast<const T*>(args.bias), static_cast<const T*>(args.residual),
                  static_cast<const T*>(args.gamma), static_cast<const T*>(args.beta), args.epsilon,
                  static_cast<T*>(args.output), args.rows, static_cast<int>(args.hidden_size));
  }
  const NormRows dealt = DealNormRows(args.rows, vectors, sizeof(T), context);
  if (dealt == NormRows::kEarlyWarp) return LaunchWarps<T, 2, true>(args, vectors, context);
  if (dealt == NormRows::kWarp) return LaunchWarps<T, 4, false>(args, vectors, context);
  if (vectors <= 64) return LaunchRegisters<T, 64, 1, 1, true>(args, context);
  if (vectors <= 96) return LaunchRegisters<T, 96, 1, 1, true>(args, context);
  if (vectors <= 128) return LaunchRegisters<T, 128, 1, 1, true>(args, context);
  if (vectors <= 256) return LaunchRegisters<T, 256, 1, 1, true>(args, context);
  return LaunchRegisters<T, 256, 1, 4, true>(args, context);
}

}  // namespace

bool LayerNormSplits(int64_t hidden_size) {
  constexpr int64_t kSize = Vector16<float>::kSize;
  return hidden_size % kSize == 0 && hidden_size / kSize <= kMaxVectors;
}

Status LaunchLayerNorm(const LayerNormArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (args.split != nullptr &&
      (args.dtype != DataType::kFloat32 || !LayerNormSplits(args.hidden_size))) {
    return Internal("a layer norm of ", args.hidden_size, " numbers of ", Name(args.dtype),
                    " cannot split its output");
  }
  return DispatchType(args.dtype,
                      [&](auto type) { return LaunchTyped<decltype(type)>(args, context); });
}

}  // namespace cuda
}  // namespace ft
