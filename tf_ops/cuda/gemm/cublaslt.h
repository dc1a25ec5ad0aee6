// cuBLASLt, opened with dlopen at first use, so that the library this goes into loads without CUDA.
#pragma once

#include <cublasLt.h>

#include <string>

#include "tf_ops/core/status.h"

namespace ft {
namespace cuda {

#define FT_CUBLASLT_FUNCTIONS(X)          \
  X(cublasLtCreate)                       \
  X(cublasLtGetVersion)                   \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoCheck)              \
  X(cublasLtMatmulAlgoConfigGetAttribute) \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)

struct CublasLt {
#define FT_DECLARE(name) decltype(&::name) name = nullptr;
  FT_CUBLASLT_FUNCTIONS(FT_DECLARE)
#undef FT_DECLARE
  std::string library;  // the name that opened
};

// The functions, resolved once. FailedPrecondition names every file that was tried.
Status GetCublasLt(const CublasLt** api);

// A handle for the current device, made once and kept. Safe for several threads.
Status GetCublasLtHandle(const CublasLt** api, cublasLtHandle_t* handle);

Status CublasStatus(cublasStatus_t status, const char* expression);

}  // namespace cuda
}  // namespace ft

#define FT_RETURN_IF_CUBLAS_ERROR(expression) \
  FT_RETURN_IF_ERROR(::ft::cuda::CublasStatus((expression), #expression))
