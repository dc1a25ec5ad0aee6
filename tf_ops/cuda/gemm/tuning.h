// The search for the fastest kernels of a layer's products.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "tf_ops/core/execution.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/gemm/half/half_kinds.h"
#include "tf_ops/cuda/gemm/int8/int8_kinds.h"
#include "tf_ops/cuda/gemm/split/split_kinds.h"

namespace ft {
namespace cuda {

// Times the algorithms of `shapes` on random operands of its own, from execution.allocator or,
// where there is none, from CUDA, and keeps the fastest in `gemm`. Waits for the stream. `rows`
// gets one entry for each shape, without its sizes for the reader.
Status TuneGemms(const std::vector<GemmShape>& shapes, const ExecutionContext& execution,
                 Gemm* gemm, std::vector<TunedGemm>* rows);

// Times cuBLASLt's algorithm that `gemm` has for each product of float16 or bfloat16, and the
// kernels that support it, and keeps the fastest in `kinds`. Others are left out.
Status TuneHalfGemms(const std::vector<GemmShape>& products, const ExecutionContext& execution,
                     Gemm* gemm, HalfKinds* kinds, std::vector<TunedHalfGemm>* rows);

// The same of products of integers, whose pointers are not read: times the kernels that support
// each, and keeps the fastest in `kinds`. Unimplemented: no kernel does.
Status TuneInt8Gemms(const std::vector<Int8GemmArgs>& products, const ExecutionContext& execution,
                     Int8Kinds* kinds, std::vector<TunedInt8Gemm>* rows);

// The same of split products.
Status TuneSplitGemms(const std::vector<SplitGemmArgs>& products, const ExecutionContext& execution,
                      SplitKinds* kinds, std::vector<TunedSplitGemm>* rows);

}  // namespace cuda
}  // namespace ft
