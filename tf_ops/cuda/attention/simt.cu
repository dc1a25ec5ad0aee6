// Attention in float32 arithmetic: tiled for head sizes up to 128, simple for any other.
#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/integers.cuh"

namespace ft {
namespace cuda {
namespace {

constexpr int kKeys = 64;  // of a tile

// Stores element `at` of the output. The branch is the same for all threads.
template <typename T>
__device__ __forceinline__ void StoreOutput(const AttentionParams& p, int64_t at, float x) {
  if (p.out_scale != nullptr && p.to_float8) {
    static_cast<Float8*>(p.output)[at] = RoundTo<Float8>(x * *p.out_scale);
  } else if (p.out_scale != nullptr) {
    static_cast<int8_t*>(p.output)[at] = RoundTo<int8_t>(x * *p.out_scale);
  } else {
    static_cast<T*>(p.output)[at] = FromFloat<T>(x);
  }
}

// 128 threads own 8 * kR query rows of one head: 8 groups of 16 threads, a group owns kR rows, a
// thread 4 neighbouring keys of them, then every 16th column of the output. Queries and keys lie
// transposed in shared memory; values take the place of the keys. Running maximum and sum as in
// FlashAttention-2.
template <typename T, int kD, int kR>
__global__ void __launch_bounds__(128) AttentionTiledKernel(const AttentionParams p) {
  constexpr int kRows = 8 * kR;
  constexpr int kPitchQ = kRows + 4, kPitchK = kKeys + 4;
  extern __shared__ __align__(16) float shared_floats[];
  float* shared_q = shared_floats;                // [kD][kPitchQ]
  float* shared_p = shared_q + kD * kPitchQ;      // [kKeys][kPitchQ]
  float* shared_kv = shared_p + kKeys * kPitchQ;  // [kD][kPitchK] keys or [kKeys][kD] values

  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const auto [first_row, head, sequence] = GetBlockPlace(p, kRows);

  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  if (first_row >= range.rows) return;
  const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
  const T* q = static_cast<const T*>(p.qkv) + range.first * 3 * hidden + head * p.head_size;

  // Neighbouring lanes take 8 rows x 4 columns, a compromise between coalescing and bank conflicts.
  const auto load_transposed = [&](const T* source, int row0, int limit, int rows, float* target,
                                   int pitch) {
    for (int i = thread; i < rows * kD; i += 128) {
      const int block = i / 32, within = i % 32;
      const int r = block / (kD / 4) * 8 + within / 4, c = block % (kD / 4) * 4 + within % 4;
      target[c * pitch + r] =
          row0 + r < limit && c < p.head_size ? ToFloat(source[(row0 + r) * 3 * hidden + c]) : 0.f;
    }
  };
  load_transposed(q, first_row, range.rows, kRows, shared_q, kPitchQ);

  constexpr int kCols = kD / 16;
  float out[kR][kCols] = {};
  float row_max[kR], row_sum[kR];
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    row_max[r] = -INFINITY;
    row_sum[r] = 0.f;
  }
  for (int key0 = 0; key0 < range.keys; key0 += kKeys) {
    __syncthreads();
    load_transposed(q + hidden, key0, range.keys, kKeys, shared_kv, kPitchK);
    __syncthreads();
    float score[kR][4] = {};
#pragma unroll 4
    for (int d = 0; d < kD; ++d) {
      const float4 k = *reinterpret_cast<const float4*>(shared_kv + d * kPitchK + tx * 4);
#pragma unroll
      for (int r = 0; r < kR; r += 4) {
        const float4 v = *reinterpret_cast<const float4*>(shared_q + d * kPitchQ + ty * kR + r);
        const float row[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          score[r + i][0] += row[i] * k.x;
          score[r + i][1] += row[i] * k.y;
          score[r + i][2] += row[i] * k.z;
          score[r + i][3] += row[i] * k.w;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = min(first_row + ty * kR + r, p.max_seq_len - 1);
      float largest = row_max[r];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = key0 + tx * 4 + j;
        float& s = score[r][j];
        s *= p.scale;
        if (key >= range.keys) {
          s = -INFINITY;
        } else if (p.mask != nullptr) {
          s += (1.f -
                ToFloat(static_cast<const T*>(
                    p.mask)[(static_cast<int64_t>(sequence) * p.max_seq_len + row) * p.max_seq_len +
                            key])) *
               -10000.f;
        }
        largest = fmaxf(largest, s);
      }
      largest = WarpMax<16>(largest);
      const float reference = SoftmaxReference(largest);
      const float correction = expf(row_max[r] - reference);
      row_max[r] = largest;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float e = expf(score[r][j] - reference);
        sum += e;
        shared_p[(tx * 4 + j) * kPitchQ + ty * kR + r] = e;
      }
      row_sum[r] = row_sum[r] * correction + sum;
#pragma unroll
      for (int c = 0; c < kCols; ++c) out[r][c] *= correction;
    }
    __syncthreads();
    for (int i = thread; i < kKeys * kD; i += 128) {
      const int r = i / kD, c = i % kD;
      shared_kv[i] = key0 + r < range.keys && c < p.head_size
                         ? ToFloat(q[2 * hidden + (key0 + r) * 3 * hidden + c])
                         : 0.f;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kKeys; ++k) {
      float value[kCols];
#pragma unroll
      for (int c = 0; c < kCols; ++c) value[c] = shared_kv[k * kD + tx + c * 16];
#pragma unroll
      for (int r = 0; r < kR; r += 4) {
        const float4 v = *reinterpret_cast<const float4*>(shared_p + k * kPitchQ + ty * kR + r);
        const float row[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < kCols; ++c) out[r + i][c] += row[i] * value[c];
        }
      }
    }
  }
  const int64_t output = range.first * hidden + head * p.head_size;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const float sum = WarpSum<16>(row_sum[r]);
    const float inverse = SoftmaxInverse(sum, range.keys);
    const int row = first_row + ty * kR + r;
    if (row >= range.rows) continue;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const int column = tx + c * 16;
      if (column < p.head_size) {
        StoreOutput<T>(p, output + row * hidden + column, out[r][c] * inverse);
      }
    }
  }
}

// float32 with a head size that is a multiple of 4: as above, but rows come by cp.async, the next
// tile's keys under softmax and second product, its values under the first product, so that nothing
// waits for memory. Nothing is transposed: a thread has rows ty, ty + 8, ... and keys tx, tx + 16,
// ..., and takes 4 columns of them at a time; loads from shared memory are 16 bytes and meet no
// bank conflict, as rows are 4 floats longer than a multiple of 32.
template <int kD, int kR>
__global__ void __launch_bounds__(128) AttentionFloatKernel(const AttentionParams p) {
  constexpr int kRows = 8 * kR, kPitch = kD + 4, kPitchP = kRows + 4, kCols = kD / 16;
  constexpr float kLog2e = 1.4426950408889634f;
  extern __shared__ __align__(16) float shared_floats[];
  float* shared_q = shared_floats;              // [kRows][kPitch]
  float* shared_k = shared_q + kRows * kPitch;  // [kKeys][kPitch]
  float* shared_v = shared_k + kKeys * kPitch;  // [kKeys][kPitch]
  float* shared_p = shared_v + kKeys * kPitch;  // [kKeys][kPitchP], rows as threads have them

  const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
  const auto [first_row, head, sequence] = GetBlockPlace(p, kRows);

  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  if (first_row >= range.rows) return;
  const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
  const float* q = static_cast<const float*>(p.qkv) + range.first * 3 * hidden + head * p.head_size;
  // Rows and columns outside become zeros.
  const auto load = [&](const float* source, int row0, int limit, int rows, float* target) {
    constexpr int kChunks = kD / 4;
    for (int i = thread; row0 < limit && i < rows * kChunks; i += 128) {
      const int r = i / kChunks, c = i % kChunks * 4;
      const bool valid = row0 + r < limit && c < p.head_size;
      CopyAsync16(target + r * kPitch + c, valid ? source + (row0 + r) * 3 * hidden + c : source,
                  valid);
    }
    CommitCopies();
  };
  load(q, first_row, range.rows, kRows, shared_q);
  load(q + hidden, 0, range.keys, kKeys, shared_k);
  load(q + 2 * hidden, 0, range.keys, kKeys, shared_v);

  float out[kR][kCols] = {};
  float row_max[kR], row_sum[kR];
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    row_max[r] = -INFINITY;
    row_sum[r] = 0.f;
  }
  for (int key0 = 0; key0 < range.keys; key0 += kKeys) {
    WaitCopies<1>();  // queries and keys; the values' group is younger
    __syncthreads();
    float score[kR][4] = {};
#pragma unroll 2
    for (int d = 0; d < kD; d += 4) {
      float4 k[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        k[j] = *reinterpret_cast<const float4*>(shared_k + (tx + j * 16) * kPitch + d);
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float4 v = *reinterpret_cast<const float4*>(shared_q + (ty + r * 8) * kPitch + d);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& s = score[r][j];
          s = fmaf(v.w, k[j].w, fmaf(v.z, k[j].z, fmaf(v.y, k[j].y, fmaf(v.x, k[j].x, s))));
        }
      }
    }
    __syncthreads();  // all have read the keys
    load(q + hidden, key0 + kKeys, range.keys, kKeys, shared_k);

#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = min(first_row + ty + r * 8, p.max_seq_len - 1);
      float largest = row_max[r];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = key0 + tx + j * 16;
        float& s = score[r][j];
        // Times log2(e), so that 2^x serves below.
        s *= p.scale * kLog2e;
        if (key >= range.keys) {
          s = -INFINITY;
        } else if (p.mask != nullptr) {
          s += (1.f -
                static_cast<const float*>(
                    p.mask)[(static_cast<int64_t>(sequence) * p.max_seq_len + row) * p.max_seq_len +
                            key]) *
               (-10000.f * kLog2e);
        }
        largest = fmaxf(largest, s);
      }
      largest = WarpMax<16>(largest);
      const float reference = SoftmaxReference(largest);
      const float correction = FastExp2(row_max[r] - reference);
      row_max[r] = largest;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += score[r][j] = FastExp2(score[r][j] - reference);
      row_sum[r] = row_sum[r] * correction + sum;
#pragma unroll
      for (int c = 0; c < kCols; ++c) out[r][c] *= correction;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < kR; r += 4) {
        *reinterpret_cast<float4*>(shared_p + (tx + j * 16) * kPitchP + ty * kR + r) =
            float4{score[r][j], score[r + 1][j], score[r + 2][j], score[r + 3][j]};
      }
    }
    WaitCopies<1>();  // the values; the next keys' group is younger
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kKeys; ++k) {
      float value[kCols];
      const float* from = shared_v + k * kPitch;
      // Columns: 4 tx + 0..3 of every 64, then 2 tx + 0..1 of the last 32.
#pragma unroll
      for (int c = 0; c + 4 <= kCols; c += 4) {
        const float4 v = *reinterpret_cast<const float4*>(from + c * 16 + tx * 4);
        value[c] = v.x;
        value[c + 1] = v.y;
        value[c + 2] = v.z;
        value[c + 3] = v.w;
      }
      if constexpr (kCols % 4 == 2) {
        const float2 v = *reinterpret_cast<const float2*>(from + (kCols - 2) * 16 + tx * 2);
        value[kCols - 2] = v.x;
        value[kCols - 1] = v.y;
      }
#pragma unroll
      for (int r = 0; r < kR; r += 4) {
        const float4 v = *reinterpret_cast<const float4*>(shared_p + k * kPitchP + ty * kR + r);
        const float row[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < kCols; ++c) out[r + i][c] = fmaf(row[i], value[c], out[r + i][c]);
        }
      }
    }
    __syncthreads();  // all have read values and weights
    load(q + 2 * hidden, key0 + kKeys, range.keys, kKeys, shared_v);
  }
  const int64_t output = range.first * hidden + head * p.head_size;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    const float sum = WarpSum<16>(row_sum[r]);
    const float inverse = SoftmaxInverse(sum, range.keys);
    const int row = first_row + ty + r * 8;
    if (row >= range.rows) continue;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      const bool wide = c < kCols / 4 * 4;
      const int column = wide ? c / 4 * 64 + tx * 4 + c % 4 : (kCols - 2) * 16 + tx * 2 + c % 2;
      if (column < p.head_size) {
        StoreOutput<float>(p, output + row * hidden + column, out[r][c] * inverse);
      }
    }
  }
}

// One block per query row and head, 128 keys at a time; the query and the output sums of the head
// lie in shared memory, so any head size that fits there will do.
template <typename T>
__global__ void __launch_bounds__(128) AttentionSimpleKernel(const AttentionParams p) {
  extern __shared__ float shared_floats[];
  float* query = shared_floats;       // [D]
  float* out = query + p.head_size;   // [D]
  float* weight = out + p.head_size;  // [128]
  __shared__ float scratch[2][4];

  const int thread = threadIdx.x;
  const int row = blockIdx.x % p.max_seq_len;
  const int head = blockIdx.x / p.max_seq_len % p.num_heads;
  const int sequence = blockIdx.x / p.max_seq_len / p.num_heads;
  AllowNextKernel();
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(p, sequence);
  if (row >= range.rows) return;
  const int64_t hidden = static_cast<int64_t>(p.num_heads) * p.head_size;
  const T* base = static_cast<const T*>(p.qkv) + range.first * 3 * hidden + head * p.head_size;
  for (int d = thread; d < p.head_size; d += 128) {
    query[d] = ToFloat(base[row * 3 * hidden + d]);
    out[d] = 0.f;
  }
  float row_max = -INFINITY, row_sum = 0.f;
  for (int key0 = 0; key0 < range.keys; key0 += 128) {
    __syncthreads();
    const int key = key0 + thread;
    float score = -INFINITY;
    if (key < range.keys) {
      score = 0.f;
      const T* k = base + hidden + key * 3 * hidden;
      for (int d = 0; d < p.head_size; ++d) score += query[d] * ToFloat(k[d]);
      score *= p.scale;
      if (p.mask != nullptr) {
        score +=
            (1.f -
             ToFloat(static_cast<const T*>(
                 p.mask)[(static_cast<int64_t>(sequence) * p.max_seq_len + row) * p.max_seq_len +
                         key])) *
            -10000.f;
      }
    }
    const float warp_max = WarpMax(score);
    if (thread % 32 == 0) scratch[0][thread / 32] = warp_max;
    __syncthreads();
    float largest = row_max;
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, scratch[0][i]);
    const float reference = SoftmaxReference(largest);
    const float e = expf(score - reference);
    weight[thread] = e;
    const float correction = expf(row_max - reference);
    row_max = largest;
    row_sum = row_sum * correction + BlockSum<128>(e, scratch[1]);
    const int count = min(128, range.keys - key0);
    for (int d = thread; d < p.head_size; d += 128) {
      float sum = out[d] * correction;
      for (int i = 0; i < count; ++i) {
        sum += weight[i] * ToFloat(base[2 * hidden + (key0 + i) * 3 * hidden + d]);
      }
      out[d] = sum;
    }
  }
  const float inverse = SoftmaxInverse(row_sum, range.keys);
  const int64_t output = (range.first + row) * hidden + head * p.head_size;
  for (int d = thread; d < p.head_size; d += 128) StoreOutput<T>(p, output + d, out[d] * inverse);
}

template <typename T, int kD, int kR>
Status LaunchTiled(AttentionParams params, const LaunchContext& context) {
  constexpr int kRows = 8 * kR;
  params.row_tiles = (params.max_seq_len + kRows - 1) / kRows;
  const int64_t blocks =
      static_cast<int64_t>(params.row_tiles) * params.num_heads * params.batch_size;
  const int64_t shared_bytes = 4 * ((kD + kKeys) * (kRows + 4) + kD * (kKeys + 4));
  return Launch(AttentionTiledKernel<T, kD, kR>, Grid{blocks}, 128, shared_bytes, context, params);
}

template <int kD, int kR>
Status LaunchFloat(AttentionParams params, const LaunchContext& context) {
  constexpr int kRows = 8 * kR;
  params.row_tiles = (params.max_seq_len + kRows - 1) / kRows;
  const int64_t blocks =
      static_cast<int64_t>(params.row_tiles) * params.num_heads * params.batch_size;
  const int64_t shared_bytes = 4 * ((kRows + 2 * kKeys) * (kD + 4) + kKeys * (kRows + 4));
  return Launch(AttentionFloatKernel<kD, kR>, Grid{blocks}, 128, shared_bytes, context, params);
}

}  // namespace

Status LaunchTiledAttention(DataType dtype, int head_size_tile, const AttentionParams& params,
                            const LaunchContext& context) {
  // 16-byte copies need a multiple of 4; the largest block takes 92 KiB, which sm_75 has not.
  if (dtype == DataType::kFloat32 && params.head_size % 4 == 0 &&
      context.max_shared_bytes >= 96 * 1024) {
    switch (head_size_tile) {
      case 32:
        return LaunchFloat<32, 8>(params, context);
      case 64:
        return LaunchFloat<64, 8>(params, context);
      case 96:
        return LaunchFloat<96, 4>(params, context);
      default:
        return LaunchFloat<128, 4>(params, context);
    }
  }
  return DispatchType(dtype, [&](auto type) {
    using T = decltype(type);
    switch (head_size_tile) {
      case 32:
        return LaunchTiled<T, 32, 8>(params, context);
      case 64:
        return LaunchTiled<T, 64, 8>(params, context);
      case 96:
        return LaunchTiled<T, 96, 4>(params, context);
      default:
        return LaunchTiled<T, 128, 4>(params, context);
    }
  });
}

Status LaunchSimpleAttention(DataType dtype, const AttentionParams& params,
                             const LaunchContext& context) {
  const int64_t shared_bytes = (2 * static_cast<int64_t>(params.head_size) + 128) * 4;
  if (shared_bytes > context.max_shared_bytes) {
    return Unimplemented("size_per_head is ", params.head_size, "; this device takes at most ",
                         (context.max_shared_bytes / 4 - 128) / 2);
  }
  return DispatchType(dtype, [&](auto type) {
    return Launch(
        AttentionSimpleKernel<decltype(type)>,
        Grid{static_cast<int64_t>(params.batch_size) * params.num_heads * params.max_seq_len}, 128,
        shared_bytes, context, params);
  });
}

}  // namespace cuda
}  // namespace ft
