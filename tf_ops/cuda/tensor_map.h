// Maps of tensors for Hopper's copy engine (hopper.cuh).
#pragma once

#include <cuda.h>

#include <mutex>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {

// A tensor of kRank dimensions, the innermost first, whose boxes are copied.
template <int kRank>
struct TensorBoxes {
  CUtensorMapDataType type;
  const void* data;            // 16-byte aligned
  cuuint64_t sizes[kRank];     // elements
  cuuint64_t strides[kRank];   // bytes, multiples of 16; the first, of an element, is not read
  cuuint32_t box[kRank];       // elements
  CUtensorMapSwizzle swizzle;  // of the box in shared memory
};

// The driver's cuTensorMapEncodeTiled, by name: the library is not linked against the driver.
inline Status GetTensorMapEncoder(decltype(&cuTensorMapEncodeTiled)* encoder) {
  static decltype(&cuTensorMapEncodeTiled) encode = nullptr;
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  if (encode == nullptr) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    FT_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found));
#else
    FT_RETURN_IF_CUDA_ERROR(
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || function == nullptr) {
      return FailedPrecondition("the CUDA driver has no cuTensorMapEncodeTiled (needs 12.0)");
    }
    encode = reinterpret_cast<decltype(encode)>(function);
  }
  *encoder = encode;
  return OkStatus();
}

// Elements outside of the tensor are copied as zeros, and are not written.
template <int kRank>
Status MakeTensorMap(const TensorBoxes<kRank>& boxes, CUtensorMap* map) {
  decltype(&cuTensorMapEncodeTiled) encode;
  FT_RETURN_IF_ERROR(GetTensorMapEncoder(&encode));
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result =
      encode(map, boxes.type, kRank, const_cast<void*>(boxes.data), boxes.sizes, boxes.strides + 1,
             boxes.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, boxes.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Internal("cuTensorMapEncodeTiled failed with ", static_cast<int>(result), " for ",
                    boxes.sizes[kRank - 1], " rows of ", boxes.sizes[0], " elements in boxes of ",
                    boxes.box[kRank - 1], " x ", boxes.box[0]);
  }
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
