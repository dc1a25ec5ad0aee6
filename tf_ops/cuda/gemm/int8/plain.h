// int8 products without CUTLASS.
#pragma once

#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

Status LaunchPlainInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
