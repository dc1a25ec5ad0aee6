// The instances of CUTLASS's kernel of float16 and bfloat16, by epilogue, then tile (see
// HalfGemmKind). Gelu: of tanh or erf. Activated: these, or none. They count on sizes that
// HalfGemmSupported has checked.
#pragma once

#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/gemm/half/half_gemm.h"

namespace ft {
namespace cuda {

template <DataType kDtype>
struct HopperHalf {
  static Status Bias128x192(const GemmArgs& args, const LaunchContext& context);
  static Status Gelu128x192(const GemmArgs& args, const LaunchContext& context);
  static Status Residual128x192(const GemmArgs& args, const LaunchContext& context);
  static Status Bias128(const GemmArgs& args, const LaunchContext& context);
  static Status Residual64x192(const GemmArgs& args, const LaunchContext& context);
  static Status BiasOne128x192(const GemmArgs& args, const LaunchContext& context);
  static Status GeluOne128x192(const GemmArgs& args, const LaunchContext& context);
  static Status Activated64x96(const GemmArgs& args, const LaunchContext& context);
  static Status Residual64x96(const GemmArgs& args, const LaunchContext& context);
  static Status Activated64(const GemmArgs& args, const LaunchContext& context);
  static Status Residual64(const GemmArgs& args, const LaunchContext& context);
};

}  // namespace cuda
}  // namespace ft
