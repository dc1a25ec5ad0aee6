// Activation in place, quantization, and the transposition and conversion of weights.
#include <algorithm>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/integers.cuh"
#include "tf_ops/cuda/rows/elementwise.h"

namespace ft {
namespace cuda {
namespace {

// x is 16-byte aligned; a grid-stride loop over vectors, then the rest element by element.
template <typename T, Activation kActivation>
__global__ void __launch_bounds__(256) ActivationKernel(T* x, int64_t num_elems) {
  constexpr int kSize = Vector16<T>::kSize;
  AllowNextKernel();
  WaitForPreviousKernel();
  const int64_t vectors = num_elems / kSize;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  for (int64_t i = first; i < vectors; i += stride) {
    Vector16<T> p = reinterpret_cast<const Vector16<T>*>(x)[i];
#pragma unroll
    for (int e = 0; e < kSize; ++e) p.v[e] = FromFloat<T>(Activate<kActivation>(ToFloat(p.v[e])));
    reinterpret_cast<Vector16<T>*>(x)[i] = p;
  }
  for (int64_t i = vectors * kSize + first; i < num_elems; i += stride) {
    x[i] = FromFloat<T>(Activate<kActivation>(ToFloat(x[i])));
  }
}

// As ActivationKernel; q is 16-byte aligned too.
template <typename T, typename Q>
__global__ void __launch_bounds__(256)
    QuantizeKernel(const T* __restrict__ x, int64_t num_elems, const float* __restrict__ scale,
                   Q* __restrict__ q) {
  constexpr int kSize = Vector16<T>::kSize;
  AllowNextKernel();
  WaitForPreviousKernel();
  const float factor = *scale;
  const int64_t vectors = num_elems / kSize;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  for (int64_t i = first; i < vectors; i += stride) {
    const Vector16<T> p = reinterpret_cast<const Vector16<T>*>(x)[i];
    float numbers[kSize];
#pragma unroll
    for (int e = 0; e < kSize; ++e) numbers[e] = ToFloat(p.v[e]);
    reinterpret_cast<Piece<Q, kSize>*>(q)[i] = RoundPiece<Q>(numbers, factor);
  }
  for (int64_t i = vectors * kSize + first; i < num_elems; i += stride) {
    q[i] = RoundTo<Q>(ToFloat(x[i]) * factor);
  }
}

template <typename T>
__global__ void __launch_bounds__(256) ToFloatKernel(const T* x, int64_t num_elems, float* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < num_elems) y[i] = ToFloat(x[i]);
}

__global__ void __launch_bounds__(256) IntegersToFloat8Kernel(int8_t* x, int64_t num_elems) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < num_elems) reinterpret_cast<Float8*>(x)[i] = RoundTo<Float8>(ToFloat(x[i]));
}

// 32x32 tiles through shared memory; 32x8 threads. blockIdx.y chooses the matrix.
template <typename T>
__global__ void __launch_bounds__(256) TransposeKernel(const TransposeArgs args) {
  __shared__ T tile[32][33];
  const auto matrix = args.matrices[blockIdx.y];
  const int tiles_per_row = (matrix.cols + 31) / 32;
  const int row = static_cast<int>(blockIdx.x) / tiles_per_row * 32;
  const int column = static_cast<int>(blockIdx.x) % tiles_per_row * 32;
  if (row >= matrix.rows) return;
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int i = y; i < 32; i += 8) {
    if (row + i < matrix.rows && column + x < matrix.cols) {
      tile[i][x] = static_cast<const T*>(
          matrix.input)[static_cast<int64_t>(row + i) * matrix.cols + column + x];
    }
  }
  __syncthreads();
  for (int i = y; i < 32; i += 8) {
    if (column + i < matrix.cols && row + x < matrix.rows) {
      static_cast<T*>(matrix.output)[static_cast<int64_t>(column + i) * matrix.rows + row + x] =
          tile[x][i];
    }
  }
}

// Blocks of a grid-stride loop over vectors.
int64_t NumBlocks(int64_t vectors, const LaunchContext& context) {
  return std::min<int64_t>(vectors / 256 + 1,
                           8 * static_cast<int64_t>(context.num_multiprocessors));
}

template <typename T>
Status LaunchActivationTyped(Activation activation, T* x, int64_t num_elems,
                             const LaunchContext& context) {
  const int64_t blocks = NumBlocks(num_elems / Vector16<T>::kSize, context);
  const auto kernel = activation == Activation::kRelu ? ActivationKernel<T, Activation::kRelu>
                      : activation == Activation::kGeluErf
                          ? ActivationKernel<T, Activation::kGeluErf>
                          : ActivationKernel<T, Activation::kGeluTanh>;
  return Launch(kernel, Grid{blocks}, 256, 0, context, x, num_elems);
}

}  // namespace

Status LaunchActivation(DataType dtype, Activation activation, void* x, int64_t num_elems,
                        const LaunchContext& context) {
  if (num_elems == 0) return OkStatus();
  return DispatchType(dtype, [&](auto type) {
    return LaunchActivationTyped(activation, static_cast<decltype(type)*>(x), num_elems, context);
  });
}

Status LaunchQuantize(DataType dtype, const void* x, int64_t num_elems, const float* scale,
                      DataType q_dtype, void* q, const LaunchContext& context) {
  if (num_elems == 0) return OkStatus();
  return DispatchType(dtype, [&](auto type) {
    using T = decltype(type);
    const Grid grid = {NumBlocks(num_elems / Vector16<T>::kSize, context)};
    const auto* const from = static_cast<const T*>(x);
    if (q_dtype == DataType::kFloat8) {
      return Launch(QuantizeKernel<T, Float8>, grid, 256, 0, context, from, num_elems, scale,
                    static_cast<Float8*>(q));
    }
    return Launch(QuantizeKernel<T, int8_t>, grid, 256, 0, context, from, num_elems, scale,
                  static_cast<int8_t*>(q));
  });
}

Status LaunchIntegersToFloat8(void* x, int64_t num_elems, const LaunchContext& context) {
  if (num_elems == 0) return OkStatus();
  LaunchContext first = context;
  first.overlap = false;
  return Launch(IntegersToFloat8Kernel, Grid{(num_elems + 255) / 256}, 256, 0, first,
                static_cast<int8_t*>(x), num_elems);
}

Status LaunchToFloat(DataType dtype, const void* x, int64_t num_elems, float* y,
                     const LaunchContext& context) {
  if (num_elems == 0) return OkStatus();
  LaunchContext first = context;
  first.overlap = false;
  return DispatchType(dtype, [&](auto type) {
    using T = decltype(type);
    return Launch(ToFloatKernel<T>, Grid{(num_elems + 255) / 256}, 256, 0, first,
                  static_cast<const T*>(x), num_elems, y);
  });
}

Status LaunchTranspose(const TransposeArgs& args, int elem_bytes, const LaunchContext& context) {
  int64_t blocks = 0;
  for (int i = 0; i < args.num_matrices; ++i) {
    const auto& m = args.matrices[i];
    blocks =
        std::max<int64_t>(blocks, static_cast<int64_t>((m.rows + 31) / 32) * ((m.cols + 31) / 32));
  }
  if (blocks == 0) return OkStatus();
  const Grid grid = {blocks, args.num_matrices};
  LaunchContext first = context;
  first.overlap = false;
  if (elem_bytes == 1) return Launch(TransposeKernel<uint8_t>, grid, 256, 0, first, args);
  if (elem_bytes == 2) return Launch(TransposeKernel<uint16_t>, grid, 256, 0, first, args);
  return Launch(TransposeKernel<uint32_t>, grid, 256, 0, first, args);
}

}  // namespace cuda
}  // namespace ft
