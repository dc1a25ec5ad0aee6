// Products of 8 bits of few rows.
#pragma once

#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

// Reads sizes alone.
bool FewRowsInt8GemmSupported(const Int8GemmArgs& args, const LaunchContext& context);

// Parts of k that fill the device when partial sums are wanted.
int FewRowsInt8GemmPartials(int64_t rows, int64_t n, int64_t k, const LaunchContext& context);

// Counts on sizes that have been checked.
Status LaunchFewRowsInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context);

}  // namespace cuda
}  // namespace ft
