// The search for the fastest cuBLASLt algorithms of a layer's products.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "tf_ops/core/execution.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace ft {
namespace cuda {

// Times the algorithms of `shapes` on random operands of its own, from execution.allocator or,
// where there is none, from CUDA, and keeps the fastest in `gemm`. Waits for the stream. `rows`
// gets one entry for each shape, without its sizes for the reader.
Status TuneGemms(const std::vector<GemmShape>& shapes, const ExecutionContext& execution,
                 Gemm* gemm, std::vector<TunedGemm>* rows);

}  // namespace cuda
}  // namespace ft
