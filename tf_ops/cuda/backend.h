// The current CUDA device as core/backend.h sees it.
#pragma once

#include "tf_ops/core/backend.h"

namespace ft {
namespace cuda {

const Backend& CudaBackend();

}  // namespace cuda
}  // namespace ft
