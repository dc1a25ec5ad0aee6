// All primitives for one instruction set: textual, no include guard.
// FT_ISA is the namespace, FT_LANES the floats of one vector register, and FT_COMPUTE_FLOAT32 or
// FT_COMPUTE_BFLOAT16 the type of the products' operands; sums are always float32.
//
// Written with GCC's vector types, so that one text serves every register width; only bfloat16's
// dot product needs an intrinsic.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "tf_ops/cpu/primitives/primitives.h"

#ifdef FT_COMPUTE_BFLOAT16
#include <immintrin.h>
#endif

namespace ft::cpu::FT_ISA {
namespace {

// Each uses those before it.
// clang-format off
#include "tf_ops/cpu/primitives/simd.h"
#include "tf_ops/cpu/primitives/math.h"
#include "tf_ops/cpu/primitives/gemm.h"
#include "tf_ops/cpu/primitives/norm.h"
#include "tf_ops/cpu/primitives/attention.h"
// clang-format on

}  // namespace

#ifdef FT_COMPUTE_BFLOAT16
extern const Primitives kBfloat16Primitives;
const Primitives kBfloat16Primitives = {
#else
#include "tf_ops/cpu/primitives/convert.h"

extern const Primitives kFloatPrimitives;
const Primitives kFloatPrimitives = {
#endif
#define FT_STRING2(x) #x
#define FT_STRING(x) FT_STRING2(x)
    FT_STRING(FT_ISA),
    kComputeType,
    {kComputeType, kComputeType, kComputeType, kWidth, kRows, kInnerChunk, Gemm, MakePanel},
    {kComputeType, Attention, AttentionScratchBytes},
    {kComputeType, AddBiasResidualLayerNorm},
    {kBlockRows, kMinRowsPerThread},
};

}  // namespace ft::cpu::FT_ISA
