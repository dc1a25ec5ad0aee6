// Bias + residual + layer norm between integers, or to float8, in one pass.
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/integers.cuh"
#include "tf_ops/cuda/norm/int8_layer_norm.h"
#include "tf_ops/cuda/norm/normalize.cuh"
#include "tf_ops/cuda/norm/partials.cuh"

namespace ft {
namespace cuda {
namespace {

// In is T or int8_t; Q is int8_t or, where In is T, Float8.
template <typename T, typename In, typename Q>
struct NormParams {
  const In* input;
  const float* input_unit;
  const In* residual;
  const float* residual_unit;
  const T* bias;
  const T* gamma;
  const T* beta;
  float epsilon;
  T* output;
  Q* quantized;
  const float* scale;
  const float* output_unit;
  int64_t rows;
  int hidden;
  // Of few rows alone. Before the others they made nvcc arrange the kernels of many rows otherwise.
  int num_partials;
  const SumOf<Q>* partials;  // null: input
  const float* product_scale;
};

// A number that kernels read once; 1 where there is none.
__device__ __forceinline__ float ReadUnit(const float* unit) {
  return unit != nullptr ? *unit : 1.f;
}

// What a sum of a product stands for, rounded where In is integers, whose unit is then to follow.
template <typename In, typename Sum>
__device__ __forceinline__ float ScaleSum(Sum sum, float scale) {
  const float y = static_cast<float>(sum) * scale;
  return std::is_same_v<In, int8_t> ? static_cast<float>(RoundToInt8(y)) : y;
}

// Stores kSize neighbours from element `at` on.
template <typename T, typename In, typename Q, int kSize>
__device__ __forceinline__ void StoreNormalized(const NormParams<T, In, Q>& p, int64_t at,
                                                const float (&y)[kSize], float scale,
                                                float output_unit) {
  if (p.quantized != nullptr) {
    *reinterpret_cast<Piece<Q, kSize>*>(p.quantized + at) = RoundPiece<Q>(y, scale);
  }
  if (p.output == nullptr) return;
  Piece<T, kSize> output;
#pragma unroll
  for (int e = 0; e < kSize; ++e) {
    output.v[e] = FromFloat<T>(p.output_unit != nullptr
                                   ? static_cast<float>(RoundToInt8(y[e] * scale)) * output_unit
                                   : y[e]);
  }
  *reinterpret_cast<Piece<T, kSize>*>(p.output + at) = output;
}

// The rows of a block, the threads of a row, what they hold and kEarly are LayerNormKernel's.
template <typename T, typename In, typename Q, int kThreads, int kRows, int kVectors, bool kEarly>
__global__ void __launch_bounds__(kThreads* kRows)
    Int8LayerNormKernel(const NormParams<T, In, Q> p) {
  static_assert(kThreads == 32 || kRows == 1, "a block's reduction is over all its threads");
  constexpr int kSize = Vector16<T>::kSize;
  __shared__ float scratch[2][kThreads / 32];
  const int thread = threadIdx.x % kThreads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreads;

  AllowNextKernel();
  // Partial sums are of few rows.
  constexpr bool kTakesPartials = kRows == 1;
  const float input_unit = ReadUnit(p.input_unit), residual_unit = ReadUnit(p.residual_unit);
  const float scale = ReadUnit(p.scale), output_unit = ReadUnit(p.output_unit);
  float x[kVectors][kSize];
  [[maybe_unused]] float product_scale[kVectors][kSize];
  Piece<T, kSize> gamma[kVectors], beta[kVectors];
  const auto load_gamma_and_beta = [&](int i, int column) {
    gamma[i] = *reinterpret_cast<const Piece<T, kSize>*>(p.gamma + column);
    beta[i] = *reinterpret_cast<const Piece<T, kSize>*>(p.beta + column);
  };
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[i][e] = 0.f;
    if (column >= p.hidden) continue;
    if (kEarly) load_gamma_and_beta(i, column);
    if (kTakesPartials && p.partials != nullptr) {
#pragma unroll
      for (int e = 0; e < kSize; e += 4) {
        *reinterpret_cast<float4*>(&product_scale[i][e]) =
            *reinterpret_cast<const float4*>(p.product_scale + column + e);
      }
    }
    const auto bias = *reinterpret_cast<const Piece<T, kSize>*>(p.bias + column);
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[i][e] = ToFloat(bias.v[e]);
  }
  WaitForPreviousKernel();
  if (row >= p.rows) return;  // whole warps (kThreads == 32) or, with kRows == 1, nobody
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
    if (column >= p.hidden) continue;
    const int64_t at = row * p.hidden + column;
    const auto add = [&](int e, float input, In residual) {
      x[i][e] = input * input_unit + x[i][e] + ToFloat(residual) * residual_unit;
      sum += x[i][e];
    };
    if constexpr (kTakesPartials) {
      if (p.partials != nullptr) {
        const auto residual = *reinterpret_cast<const Piece<In, kSize>*>(p.residual + at);
        SumOf<Q> sums[kSize] = {};
        AddPartials<4>(p.partials + at, p.num_partials, p.rows * p.hidden, sums);
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          add(e, ScaleSum<In>(sums[e], product_scale[i][e]), residual.v[e]);
        }
        continue;
      }
    }
    const auto input = *reinterpret_cast<const Piece<In, kSize>*>(p.input + at);
    const auto residual = *reinterpret_cast<const Piece<In, kSize>*>(p.residual + at);
#pragma unroll
    for (int e = 0; e < kSize; ++e) add(e, ToFloat(input.v[e]), residual.v[e]);
  }
  NormalizeRow<kThreads>(sum, thread, p.hidden, p.epsilon, scratch, x);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (thread + i * kThreads) * kSize;
    if (column >= p.hidden) continue;
    if (!kEarly) load_gamma_and_beta(i, column);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      x[i][e] = x[i][e] * ToFloat(gamma[i].v[e]) + ToFloat(beta[i].v[e]);
    }
    StoreNormalized(p, row * p.hidden + column, x[i], scale, output_unit);
  }
}

// Any H: one block of 256 threads per row; the row is read three times.
template <typename T, typename In, typename Q>
__global__ void __launch_bounds__(256) Int8LayerNormAnySizeKernel(const NormParams<T, In, Q> p) {
  __shared__ float scratch[2][8];
  AllowNextKernel();
  WaitForPreviousKernel();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.hidden;
  const float input_unit = ReadUnit(p.input_unit), residual_unit = ReadUnit(p.residual_unit);
  const auto input = [&](int c) {
    if (p.partials == nullptr) return ToFloat(p.input[first + c]);
    SumOf<Q> sum = 0;
    for (int part = 0; part < p.num_partials; ++part) {
      sum += p.partials[part * p.rows * p.hidden + first + c];
    }
    return ScaleSum<In>(sum, p.product_scale[c]);
  };
  const auto value = [&](int c) {
    return input(c) * input_unit + ToFloat(p.bias[c]) +
           ToFloat(p.residual[first + c]) * residual_unit;
  };
  float sum = 0.f;
  for (int c = threadIdx.x; c < p.hidden; c += 256) sum += value(c);
  const float mean = BlockSum<256>(sum, scratch[0]) / p.hidden;
  float squares = 0.f;
  for (int c = threadIdx.x; c < p.hidden; c += 256) {
    const float difference = value(c) - mean;
    squares += difference * difference;
  }
  const float deviation = rsqrtf(BlockSum<256>(squares, scratch[1]) / p.hidden + p.epsilon);
  const float scale = ReadUnit(p.scale), output_unit = ReadUnit(p.output_unit);
  for (int c = threadIdx.x; c < p.hidden; c += 256) {
    const float y[1] = {(value(c) - mean) * deviation * ToFloat(p.gamma[c]) + ToFloat(p.beta[c])};
    StoreNormalized(p, first + c, y, scale, output_unit);
  }
}

template <int kThreads, int kRows, int kVectors, bool kEarly, typename T, typename In, typename Q>
Status LaunchRegisters(const NormParams<T, In, Q>& params, const LaunchContext& context) {
  return Launch(Int8LayerNormKernel<T, In, Q, kThreads, kRows, kVectors, kEarly>,
                Grid{(params.rows + kRows - 1) / kRows}, kThreads * kRows, 0, context, params);
}

// A warp a row, kRows of them a block, of kMaxWarpVectors at most.
template <int kRows, bool kEarly, typename T, typename In, typename Q>
Status LaunchWarps(const NormParams<T, In, Q>& params, int64_t vectors,
                   const LaunchContext& context) {
  if (vectors <= 64) return LaunchRegisters<32, kRows, 2, kEarly>(params, context);
  if (vectors <= 96) return LaunchRegisters<32, kRows, 3, kEarly>(params, context);
  if (vectors <= 128) return LaunchRegisters<32, kRows, 4, kEarly>(params, context);
  return LaunchRegisters<32, kRows, 8, kEarly>(params, context);
}

template <typename T, typename In, typename Q>
Status LaunchTyped(const Int8LayerNormArgs& args, const LaunchContext& context) {
  const NormParams<T, In, Q> params = {static_cast<const In*>(args.input),
                                       args.input_unit,
                                       static_cast<const In*>(args.residual),
                                       args.residual_unit,
                                       static_cast<const T*>(args.bias),
                                       static_cast<const T*>(args.gamma),
                                       static_cast<const T*>(args.beta),
                                       args.epsilon,
                                       static_cast<T*>(args.output),
                                       static_cast<Q*>(args.quantized),
                                       args.scale,
                                       args.output_unit,
                                       args.rows,
                                       static_cast<int>(args.hidden_size),
                                       args.num_partials,
                                       static_cast<const SumOf<Q>*>(args.partials),
                                       args.product_scale};
  constexpr int kSize = Vector16<T>::kSize;
  const int64_t vectors = args.hidden_size / kSize;
  if (args.hidden_size % kSize != 0 || vectors > 1024) {
    return Launch(Int8LayerNormAnySizeKernel<T, In, Q>, Grid{args.rows}, 256, 0, context, params);
  }
  // Partial sums are of few rows.
  const NormRows dealt = args.partials != nullptr
                             ? NormRows::kBlock
                             : DealNormRows(args.rows, vectors, sizeof(T), context);
  if (dealt == NormRows::kEarlyWarp) return LaunchWarps<2, true>(params, vectors, context);
  if (dealt == NormRows::kWarp) return LaunchWarps<4, false>(params, vectors, context);
  if (vectors <= 96) return LaunchRegisters<96, 1, 1, true>(params, context);
  if (vectors <= 128) return LaunchRegisters<128, 1, 1, true>(params, context);
  if (vectors <= 256) return LaunchRegisters<256, 1, 1, true>(params, context);
  return LaunchRegisters<256, 1, 4, true>(params, context);
}

}  // namespace

Status LaunchInt8LayerNorm(const Int8LayerNormArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (args.reads_integers && args.quantized_dtype != DataType::kInt8) {
    return Internal("a layer norm of integers was asked for ", Name(args.quantized_dtype));
  }
  return DispatchType(args.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.quantized_dtype == DataType::kFloat8) return LaunchTyped<T, T, Float8>(args, context);
    return args.reads_integers ? LaunchTyped<T, int8_t, int8_t>(args, context)
                               : LaunchTyped<T, T, int8_t>(args, context);
  });
}

}  // namespace cuda
}  // namespace ft
