// All primitives for one instruction set: textual, no include guard.
// FT_ISA is the namespace, FT_LANES the floats of one vector register, and FT_COMPUTE_FLOAT32 or
// FT_COMPUTE_BFLOAT16 the type of the products' operands; sums are always float32.
//
// FT_INT8_VNNI: the instruction set has vpdpbusd. FT_AMX: products are computed on tile registers.
//
// Written with GCC's vector types, so that one text serves every register width; only dot products
// of bfloat16 and of integers need intrinsics.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "tf_ops/cpu/primitives/primitives.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace ft::cpu::FT_ISA {
namespace {

// Each uses those before it.
// clang-format off
#include "tf_ops/cpu/primitives/simd.h"
#include "tf_ops/cpu/primitives/math.h"
#include "tf_ops/cpu/primitives/integers.h"
#include "tf_ops/cpu/primitives/gemm.h"
#include "tf_ops/cpu/primitives/int_gemm.h"
#ifdef FT_AMX
#include "tf_ops/cpu/primitives/tiles.h"
#include "tf_ops/cpu/primitives/tile_gemm.h"
#endif
#include "tf_ops/cpu/primitives/norm.h"
#include "tf_ops/cpu/primitives/attention.h"
#include "tf_ops/cpu/primitives/convert.h"
// clang-format on

// The products of T, and of integers.
int64_t NoScratch(int64_t, int64_t) { return 0; }
#if defined(FT_AMX) && defined(FT_COMPUTE_BFLOAT16)
constexpr GemmPrimitives kGemm = {
    kComputeType,  kComputeType, kComputeType, kPair,     kWidth,          0,        kTilePairRows,
    kTilePairRows, kInnerChunk,  32,           NoScratch, TileGemm<false>, MakePanel};
#else
constexpr GemmPrimitives kGemm = {kComputeType, kComputeType, kComputeType, kPair, kWidth,    0,
                                  kRows,        kRowStep,     kInnerChunk,  kPair, NoScratch, Gemm,
                                  MakePanel};
#endif
#ifdef FT_INT8_SIGNS
// Two bytes an element while they are multiplied (PackRows).
constexpr int64_t kIntInnerChunk = kInnerChunk * 2;
#else
constexpr int64_t kIntInnerChunk = kInnerChunk * 4 / static_cast<int64_t>(sizeof(Q));
#endif
#ifdef FT_AMX
constexpr GemmPrimitives kIntGemm = {
    kIntType,        DataType::kInt8, kComputeType,  kIntPadding,    kIntWidth,
    kHeaderBytes,    kTilePairRows,   kTilePairRows, kIntInnerChunk, 1,
    IntScratchBytes, TileGemm<true>,  MakeIntPanel};
#else
constexpr GemmPrimitives kIntGemm = {
    kIntType,        DataType::kInt8, kComputeType, kIntPadding,    kIntWidth,
    kHeaderBytes,    kIntRows,        kRowStep,     kIntInnerChunk, 1,
    IntScratchBytes, IntGemm,         MakeIntPanel};
#endif

#define FT_STRING2(x) #x
#define FT_STRING(x) FT_STRING2(x)
#ifndef FT_ISA_NAME
#define FT_ISA_NAME FT_ISA
#endif
constexpr Primitives With(const GemmPrimitives& gemm) {
  return {
      FT_STRING(FT_ISA_NAME),
      kComputeType,
      gemm,
      {kComputeType, Attention, AttentionScratchBytes},
      {kComputeType, AddBiasResidualLayerNorm},
      {kBlockRows, kMinRowsPerThread, kGridRows},
      Quantize,
      ConvertElements,
  };
}

}  // namespace

extern const Primitives kPrimitives, kInt8Primitives;
constexpr Primitives kPrimitives = With(kGemm);
constexpr Primitives kInt8Primitives = With(kIntGemm);

}  // namespace ft::cpu::FT_ISA
