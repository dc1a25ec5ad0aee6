#include <type_traits>

#include "tf_ops/cuda/attention/params.h"
#include "tf_ops/cuda/attention/projection.h"
#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/integers.cuh"
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
  void* partials;
  int rows, n;
};

// What a block has in shared memory: queries, keys, values and, but for weights of 8 bits, rows of
// w. Rows are 8 numbers longer than what is in them, so that ldmatrix meets no bank conflict.
template <int kD, bool kRounds>
struct ProjectionTile {
  static constexpr int kPitch = kHeads * kD + 8;
  static constexpr int kSumPitch = kCols + 8;
  static constexpr int64_t kBytes = int64_t{(kRounds ? 0 : kCols) + 3 * kRows} * kPitch * 2;
  static_assert(kWarps * 16 * kSumPitch * 4 <= 3 * kRows * kPitch * 2,
                "the sums take the place of queries, keys and values");
};

// Registers of a lane that hold a row of the context, or of w, as a product takes it: of two
// neighbours of each eight float8, as halves, or of those of each sixteen integers.
template <typename W, int kD>
constexpr int kContextWords = kD / (std::is_same_v<W, int8_t> ? 16 : 8);

// These registers from a row of w, of which lane t of four neighbours holds kD / 4 bytes from t *
// kD / 4 on.
template <typename W, int kD>
__device__ __forceinline__ void ArrangeWeights(const uint4& row, int lane,
                                               uint32_t (&words)[kContextWords<W, kD>]) {
  constexpr bool kIntegers = std::is_same_v<W, int8_t>;
  uint32_t pairs[4];  // that lanes 0 to 3 are to have
  if constexpr (kD == 64) {
    pairs[0] = __byte_perm(row.x, row.z, 0x5410);
    pairs[1] = __byte_perm(row.x, row.z, 0x7632);
    pairs[2] = __byte_perm(row.y, row.w, 0x5410);
    pairs[3] = __byte_perm(row.y, row.w, 0x7632);
  } else {
    pairs[0] = row.x & 0xffff;
    pairs[1] = row.x >> 16;
    pairs[2] = row.y & 0xffff;
    pairs[3] = row.y >> 16;
  }
  TransposeQuad(pairs, lane);
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    if constexpr (kIntegers && kD == 64) {
      words[t] = pairs[t];
    } else if constexpr (kIntegers) {
      if (t % 2 == 0) words[t / 2] = pairs[t] | pairs[t + 1] << 16;
    } else if constexpr (kD == 64) {
      words[2 * t] = Float8PairToHalves(pairs[t] & 0xffff);
      words[2 * t + 1] = Float8PairToHalves(pairs[t] >> 16);
    } else {
      words[t] = Float8PairToHalves(pairs[t]);
    }
  }
}

// The block computes the context of kHeads heads and multiplies it by those numbers of kCols rows
// of w that belong to them: attention is so little work that each block of columns may repeat it,
// and a kernel that reads what another wrote costs more. A warp's context is in registers the left
// side of its product; the warps' products are added up at the end. Accumulates in float32.
//
// W is T, int8_t or Float8. Of 8 bits a warp has its weights in registers, in the order in which
// lanes have the context: two neighbours of each eight numbers. Float8 is multiplied as halves, as
// compute capability 9.0 does anyway.
template <typename T, typename W, int kD>
__global__ void __launch_bounds__(kThreads, 1) AttentionProjectionKernel(const ProjectionParams p) {
#if __CUDA_ARCH__ >= 800
  constexpr bool kRounds = !std::is_same_v<W, T>;
  using Sum = SumOf<W>;
  using Tile = ProjectionTile<kD, kRounds>;
  constexpr int kPitch = Tile::kPitch, kChunks = kHeads * kD / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  T* const shared_w = reinterpret_cast<T*>(shared);
  T* const shared_q = shared_w + (kRounds ? 0 : kCols * kPitch);
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
  const int head = warp / 2, warp_row = warp % 2 * 16;
  constexpr bool kIntegers = std::is_same_v<W, int8_t>;
  constexpr int kWords = kContextWords<W, kD>;
  [[maybe_unused]] uint4 w_rows[kCols / 8];
  [[maybe_unused]] float out_scale = 1.f;
  if constexpr (kRounds) {
    out_scale = *a.out_scale;
    const int w_head = min(head0 + head, a.num_heads - 1);
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) {
      const int row = min(col0 + j * 8 + lane / 4, p.n - 1);
      const auto* const bytes =
          static_cast<const uint8_t*>(p.w) + row * hidden + w_head * kD + lane % 4 * (kD / 4);
      if constexpr (kD == 64) {
        w_rows[j] = *reinterpret_cast<const uint4*>(bytes);
      } else {
        const uint2 half_row = *reinterpret_cast<const uint2*>(bytes);
        w_rows[j] = uint4{half_row.x, half_row.y, 0, 0};
      }
    }
  } else {
    load(static_cast<const T*>(p.w) + col0 * hidden + head0 * kD, hidden, p.n - col0, shared_w);
  }
  WaitForPreviousKernel();
  // Rows past the sequence's end give scores that are not used. Its length, which may be in memory,
  // is not waited for.
  const T* const qkv = static_cast<const T*>(a.qkv) + head0 * kD;
  load(qkv, 3 * hidden, p.rows, shared_q);
  load(qkv + hidden, 3 * hidden, p.rows, shared_k);
  CommitCopies();
  const int num_keys = GetSequenceLengths(a, 0).keys;
  load(qkv + 2 * hidden, 3 * hidden, num_keys, shared_v);
  CommitCopies();
  [[maybe_unused]] uint32_t w_words[kCols / 8][kWords];
  if constexpr (kRounds) {
    // While queries and keys are on their way.
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) ArrangeWeights<W, kD>(w_rows[j], lane, w_words[j]);
  }
  WaitCopies<1>();
  __syncthreads();

  const int first_chunk = head * kD / 8;  // of the warp's head in a row
  const auto address = [&](const T* tile, int row, int chunk) {
    return SharedAddress(tile + row * kPitch + (first_chunk + chunk) * 8);
  };
  // All that products need is loaded before the first, and neighbours add to different sums: few
  // warps have nobody else to fill the time that each takes.
  constexpr int kBlocks = kD / 16;
  uint32_t weight[kRows / 16][4];
  [[maybe_unused]] uint32_t w_matrices[kBlocks][kCols / 16][4];
  float inverse[2];
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
  if constexpr (!kRounds) {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
#pragma unroll
      for (int j = 0; j < kCols / 16; ++j) {
        LoadMatrices(w_matrices[c][j],
                     address(shared_w, j * 16 + lane % 8 + lane / 16 * 8, c * 2 + lane / 8 % 2));
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (j * 8 + lane % 4 * 2 + e >= num_keys) score[j][e] = score[j][2 + e] = -INFINITY;
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
    // As SoftmaxInverse, but without the branches of a division that is right to the last bit.
    inverse[h] = num_keys > 0 ? __fdividef(1.f, WarpSum<4>(total)) : 0.f;
  }
#pragma unroll
  for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float(&s)[4] = score[2 * j + e / 2];
      weight[j][e] = ToPair<T>(s[e % 2 * 2], s[e % 2 * 2 + 1]);
    }
  }
  WaitCopies<0>();
  __syncthreads();
  Sum sum[kCols / 8][4] = {};
  uint32_t value[kRows / 16][kBlocks][4];
#pragma unroll
  for (int j = 0; j < kRows / 16; ++j) {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      LoadMatricesTransposed(value[j][c], address(shared_v, j * 16 + lane % 16, c * 2 + lane / 16));
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
  // The context of row lane / 4 + h * 8, columns c * 8 + lane % 4 * 2 and the next.
  const auto context = [&](int c, int h) {
    return make_float2(out[c][h * 2] * inverse[h], out[c][h * 2 + 1] * inverse[h]);
  };
  if constexpr (kRounds) {
    const auto pair = [&](int c, int h) {
      const float2 x = context(c, h);
      return uint32_t{PackPair(!kIntegers, x.x * out_scale, x.y * out_scale)};
    };
    // As w_words has the weights.
    const auto word = [&](int c, int h) {
      return kIntegers ? pair(2 * c, h) | pair(2 * c + 1, h) << 16 : Float8PairToHalves(pair(c, h));
    };
#pragma unroll
    for (int c = 0; c < kWords; c += 2) {
      const uint32_t words[4] = {word(c, 0), word(c, 1), word(c + 1, 0), word(c + 1, 1)};
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        if constexpr (kIntegers) {
          MultiplyAddBytes(sum[j], words, w_words[j][c], w_words[j][c + 1]);
        } else {
          MultiplyAdd<half>(sum[j], words, w_words[j][c], w_words[j][c + 1]);
        }
      }
    }
  } else {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      uint32_t pairs[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 x = context(2 * c + e / 2, e % 2);
        pairs[e] = ToPair<T>(x.x, x.y);
      }
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const uint32_t(&w2)[4] = w_matrices[c][j / 2];
        MultiplyAdd<T>(sum[j], pairs, w2[j % 2 * 2], w2[j % 2 * 2 + 1]);
      }
    }
  }

  // The warps' sums [kWarps][16][kSumPitch]; those of a head's two warps are its rows.
  __syncthreads();
  using Pair = Piece<Sum, 2>;
  Sum* const sums = reinterpret_cast<Sum*>(shared_q);
#pragma unroll
  for (int j = 0; j < kCols / 8; ++j) {
    Sum* to = sums + (warp * 16 + lane / 4) * Tile::kSumPitch + j * 8 + lane % 4 * 2;
    *reinterpret_cast<Pair*>(to) = {sum[j][0], sum[j][1]};
    *reinterpret_cast<Pair*>(to + 8 * Tile::kSumPitch) = {sum[j][2], sum[j][3]};
  }
  __syncthreads();
  const int column = thread % (kCols / 2) * 2;
  constexpr int kRowsApart = kThreads / (kCols / 2);
#pragma unroll
  for (int i = 0; i < kRows / kRowsApart; ++i) {
    const int r = thread / (kCols / 2) + i * kRowsApart;
    if (r >= p.rows || col0 + column >= p.n) continue;
    Pair y = {};
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const auto pair =
          *reinterpret_cast<const Pair*>(sums + (h * kRows + r) * Tile::kSumPitch + column);
      y.v[0] += pair.v[0];
      y.v[1] += pair.v[1];
    }
    const int64_t row = static_cast<int64_t>(blockIdx.y) * p.rows + r;
    *reinterpret_cast<Pair*>(static_cast<Sum*>(p.partials) + row * p.n + col0 + column) = y;
  }
#endif
}

template <typename T, typename W, int kD>
Status LaunchTyped(const AttentionProjectionArgs& args, const LaunchContext& context) {
  const Grid grid = {(args.n + kCols - 1) / kCols,
                     AttentionProjectionParts(args.attention.num_heads)};
  const ProjectionParams params = {MakeAttentionParams(args.attention), args.w, args.partials,
                                   static_cast<int>(args.rows), static_cast<int>(args.n)};
  return Launch(AttentionProjectionKernel<T, W, kD>, grid, kThreads,
                ProjectionTile<kD, !std::is_same_v<W, T>>::kBytes, context, params);
}

}  // namespace

int AttentionProjectionParts(int64_t num_heads) {
  return static_cast<int>((num_heads + kHeads - 1) / kHeads);
}

bool AttentionProjectionSupported(const AttentionProjectionArgs& args,
                                  const LaunchContext& context) {
  const AttentionArgs& a = args.attention;
  const int64_t bytes =
      a.head_size == 64 ? ProjectionTile<64, false>::kBytes : ProjectionTile<32, false>::kBytes;
  const bool is_w_supported =
      args.w_dtype == a.dtype || args.w_dtype == DataType::kInt8 ||
      (args.w_dtype == DataType::kFloat8 && context.compute_capability >= 89);
  return is_w_supported && context.compute_capability >= 80 && SizeOf(a.dtype) == 2 &&
         a.batch_size == 1 && a.max_seq_len <= kRows && args.rows <= kRows && a.mask == nullptr &&
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
  const auto launch_typed = [&](auto type, auto w_type) {
    using T = decltype(type);
    using W = decltype(w_type);
    return a.head_size == 64 ? LaunchTyped<T, W, 64>(args, context)
                             : LaunchTyped<T, W, 32>(args, context);
  };
  const auto launch = [&](auto type) {
    if (args.w_dtype == DataType::kInt8) return launch_typed(type, int8_t());
    if (args.w_dtype == DataType::kFloat8) return launch_typed(type, Float8());
    return launch_typed(type, type);
  };
  return a.dtype == DataType::kFloat16 ? launch(half()) : launch(__nv_bfloat16());
}

}  // namespace cuda
}  // namespace ft
