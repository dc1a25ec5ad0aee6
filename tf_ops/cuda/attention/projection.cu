#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/attention/projection.h"
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/norm/layer_norm.h"

namespace ft {
namespace cuda {
namespace {

constexpr int kHeads = 4;              // of a block
constexpr int kRows = kShortSequence;  // query rows, and keys
constexpr int kWarps = 2 * kHeads;     // each has 16 rows of a head
constexpr int kThreads = 32 * kWarps;
constexpr int kCols = 32;  // of the result, of a block

struct ProjectionParams {
  AttentionParams attention;
  const void* w;
  float* partials;
  int rows, n;
};

// What a block has in shared memory. Rows are 8 numbers longer than what is in them, so that
// ldmatrix meets no bank conflict.
template <int kD>
struct ProjectionTile {
  static constexpr int kPitch = kHeads * kD + 8;
  static constexpr int kSumPitch = kCols + 8;
  static constexpr int64_t kBytes = int64_t{kCols + 3 * kRows} * kPitch * 2;
  static_assert(kWarps * 16 * kSumPitch * 4 <= 3 * kRows * kPitch * 2,
                "the sums take the place of queries, keys and values");
};

// The block computes the context of kHeads heads and multiplies it by those numbers of kCols rows
// of w that belong to them: attention is so little work that each block of columns may repeat it,
// and a kernel that reads what another wrote costs more. A warp's context is in registers the left
// side of its product; the warps' products are added up at the end. Accumulates in float32.
template <typename T, int kD>
__global__ void __launch_bounds__(kThreads) AttentionProjectionKernel(const ProjectionParams p) {
#if __CUDA_ARCH__ >= 800
  using Tile = ProjectionTile<kD>;
  constexpr int kPitch = Tile::kPitch, kChunks = kHeads * kD / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  T* const shared_w = reinterpret_cast<T*>(shared);
  T* const shared_q = shared_w + kCols * kPitch;
  T* const shared_k = shared_q + kRows * kPitch;
  T* const shared_v = shared_k + kRows * kPitch;

  const AttentionParams& a = p.attention;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int col0 = blockIdx.x * kCols, head0 = blockIdx.y * kHeads;
  const int64_t hidden = static_cast<int64_t>(a.num_heads) * kD;
  const int num_chunks = min(kHeads, a.num_heads - head0) * kD / 8;
  const auto load = [&](const T* source, int64_t pitch, int limit, T* target) {
    static_assert(kRows == kCols, "the same for w");
    ForEachChunk<kThreads, kRows, kChunks>(thread, [&](int r, int c) {
      const bool valid = r < limit && c < num_chunks;
      CopyAsync16(target + r * kPitch + c * 8, valid ? source + r * pitch + c * 8 : source, valid);
    });
  };

  // What is multiplied first is waited for first.
  AllowNextKernel();
  load(static_cast<const T*>(p.w) + col0 * hidden + head0 * kD, hidden, p.n - col0, shared_w);
  WaitForPreviousKernel();
  const SequenceRange range = GetSequenceRange(a, 0);
  const T* const qkv = static_cast<const T*>(a.qkv) + range.first * 3 * hidden + head0 * kD;
  load(qkv, 3 * hidden, range.rows, shared_q);
  load(qkv + hidden, 3 * hidden, range.keys, shared_k);
  CommitCopies();
  load(qkv + 2 * hidden, 3 * hidden, range.keys, shared_v);
  CommitCopies();
  WaitCopies<1>();
  __syncthreads();

  const int head = warp / 2, warp_row = warp % 2 * 16;
  const int first_chunk = head * kD / 8;  // of the warp's head in a row
  const bool active = head0 + head < a.num_heads && warp_row < range.rows;
  const auto address = [&](const T* tile, int row, int chunk) {
    return SharedAddress(tile + row * kPitch + (first_chunk + chunk) * 8);
  };
  // All that products need is loaded before the first, and neighbours add to different sums: few
  // warps have nobody else to fill the time that each takes.
  constexpr int kBlocks = kD / 16;
  uint32_t weight[kRows / 16][4], w_matrices[kBlocks][kCols / 16][4];
  float inverse[2];
  if (active) {
    uint32_t query[kBlocks][4], key[kBlocks][kRows / 16][4];
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      LoadMatrices(query[c], address(shared_q, warp_row + lane % 16, c * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kRows / 16; ++j) {
        LoadMatrices(key[c][j],
                     address(shared_k, j * 16 + lane % 8 + lane / 16 * 8, c * 2 + lane / 8 % 2));
      }
    }
    float score[kRows / 8][4] = {};
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        const uint32_t(&k2)[4] = key[c][j / 2];
        MultiplyAdd<T>(score[j], query[c], k2[j % 2 * 2], k2[j % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int j = 0; j < kCols / 16; ++j) {
        LoadMatrices(w_matrices[c][j],
                     address(shared_w, j * 16 + lane % 8 + lane / 16 * 8, c * 2 + lane / 8 % 2));
      }
    }
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (j * 8 + lane % 4 * 2 + e >= range.keys) score[j][e] = score[j][2 + e] = -INFINITY;
      }
    }
    const float scale = a.scale * 1.4426950408889634f;  // so that 2^x serves
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        largest = fmaxf(largest, fmaxf(score[j][h * 2], score[j][h * 2 + 1]));
      }
      const float shift = -SoftmaxReference(WarpMax<4>(largest)) * scale;
      float total = 0.f;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = score[j][h * 2 + e];
          s = FastExp2(fmaf(s, scale, shift));
          total += s;
        }
      }
      inverse[h] = SoftmaxInverse(WarpSum<4>(total), range.keys);
    }
#pragma unroll
    for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float(&s)[4] = score[2 * j + e / 2];
        weight[j][e] = ToPair<T>(s[e % 2 * 2], s[e % 2 * 2 + 1]);
      }
    }
  }
  WaitCopies<0>();
  __syncthreads();
  float sum[kCols / 8][4] = {};
  if (active) {
    uint32_t value[kRows / 16][kBlocks][4];
#pragma unroll
    for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        LoadMatricesTransposed(value[j][c],
                               address(shared_v, j * 16 + lane % 16, c * 2 + lane / 16));
      }
    }
    float out[2 * kBlocks][4] = {};
#pragma unroll
    for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
      for (int c = 0; c < 2 * kBlocks; ++c) {
        const uint32_t(&v2)[4] = value[j][c / 2];
        MultiplyAdd<T>(out[c], weight[j], v2[c % 2 * 2], v2[c % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      uint32_t context[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float(&o)[4] = out[2 * c + e / 2];
        context[e] = ToPair<T>(o[e % 2 * 2] * inverse[e % 2], o[e % 2 * 2 + 1] * inverse[e % 2]);
      }
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const uint32_t(&w2)[4] = w_matrices[c][j / 2];
        MultiplyAdd<T>(sum[j], context, w2[j % 2 * 2], w2[j % 2 * 2 + 1]);
      }
    }
  }

  // The warps' sums, float32 [kWarps][16][kSumPitch]; those of a head's two warps are its rows.
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared_q);
#pragma unroll
  for (int j = 0; j < kCols / 8; ++j) {
    float* to = sums + (warp * 16 + lane / 4) * Tile::kSumPitch + j * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(sum[j][0], sum[j][1]);
    *reinterpret_cast<float2*>(to + 8 * Tile::kSumPitch) = make_float2(sum[j][2], sum[j][3]);
  }
  __syncthreads();
  const int column = thread % (kCols / 2) * 2;
  if (col0 + column >= p.n) return;
  for (int r = thread / (kCols / 2); r < p.rows; r += kThreads / (kCols / 2)) {
    float2 y = make_float2(0.f, 0.f);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float2 f =
          *reinterpret_cast<const float2*>(sums + (h * kRows + r) * Tile::kSumPitch + column);
      y.x += f.x;
      y.y += f.y;
    }
    const int64_t row = static_cast<int64_t>(blockIdx.y) * p.rows + r;
    *reinterpret_cast<float2*>(p.partials + row * p.n + col0 + column) = y;
  }
#endif
}

template <typename T, int kD>
Status LaunchTyped(const AttentionProjectionArgs& args, const LaunchContext& context) {
  const Grid grid = {(args.n + kCols - 1) / kCols,
                     AttentionProjectionParts(args.attention.num_heads)};
  const ProjectionParams params = {MakeAttentionParams(args.attention), args.w, args.partials,
                                   static_cast<int>(args.rows), static_cast<int>(args.n)};
  return Launch(AttentionProjectionKernel<T, kD>, grid, kThreads, ProjectionTile<kD>::kBytes,
                context, params);
}

}  // namespace

int AttentionProjectionParts(int64_t num_heads) {
  return static_cast<int>((num_heads + kHeads - 1) / kHeads);
}

bool AttentionProjectionSupported(const AttentionProjectionArgs& args,
                                  const LaunchContext& context) {
  const AttentionArgs& a = args.attention;
  const int64_t bytes = a.head_size == 64 ? ProjectionTile<64>::kBytes : ProjectionTile<32>::kBytes;
  return context.compute_capability >= 80 && SizeOf(a.dtype) == 2 && a.batch_size == 1 &&
         a.max_seq_len <= kRows && args.rows <= kRows && a.mask == nullptr &&
         (a.head_size == 32 || a.head_size == 64) && args.n % 2 == 0 &&
         AttentionProjectionParts(a.num_heads) <= kMaxNormPartials &&
         context.max_shared_bytes >= bytes;
}

Status LaunchAttentionProjection(const AttentionProjectionArgs& args,
                                 const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  const AttentionArgs& a = args.attention;
  if (!AttentionProjectionSupported(args, context)) {
    return Internal("attention and its product in one kernel were wanted for ", a.batch_size, "x",
                    a.max_seq_len, " of ", Name(a.dtype), ", ", a.num_heads, " heads of ",
                    a.head_size);
  }
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return a.head_size == 64 ? LaunchTyped<T, 64>(args, context)
                             : LaunchTyped<T, 32>(args, context);
  };
  return a.dtype == DataType::kFloat16 ? launch(half()) : launch(__nv_bfloat16());
}

}  // namespace cuda
}  // namespace ft
