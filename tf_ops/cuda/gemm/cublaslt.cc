#include "tf_ops/cuda/gemm/cublaslt.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

#include <map>
#include <mutex>
#include <vector>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {
namespace {

// site-packages, seen from where TensorFlow's library lies; "" outside TensorFlow.
std::string SitePackages() {
  std::string found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        const std::string name = info->dlpi_name ? info->dlpi_name : "";
        if (name.find("libtensorflow_framework.so") == std::string::npos) return 0;
        char* real = realpath(name.c_str(), nullptr);
        if (real == nullptr) return 0;
        const std::string path = real;
        free(real);
        const size_t end = path.rfind("/tensorflow/libtensorflow_framework.so");
        if (end == std::string::npos) return 0;
        *static_cast<std::string*>(result) = path.substr(0, end);
        return 1;
      },
      &found);
  return found;
}

Status Open(CublasLt* api) {
  std::vector<std::string> names;
  if (const char* path = getenv("FT_CUBLASLT_LIBRARY")) names.push_back(path);
  const std::string site = SitePackages();
  // TensorFlow 2.21 uses CUDA 12: its copy first.
  names.push_back("libcublasLt.so.12");
  if (!site.empty()) names.push_back(site + "/nvidia/cublas/lib/libcublasLt.so.12");
  names.push_back("libcublasLt.so.13");
  if (!site.empty()) names.push_back(site + "/nvidia/cu13/lib/libcublasLt.so.13");
  names.push_back("/usr/local/cuda/lib64/libcublasLt.so.12");
  names.push_back("/usr/local/cuda/lib64/libcublasLt.so.13");

  void* handle = nullptr;
  std::string tried;
  for (const std::string& name : names) {
    handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) {
      api->library = name;
      break;
    }
    const char* error = dlerror();
    tried += "\n  " + (error != nullptr ? std::string(error) : name);
  }
  if (handle == nullptr) {
    return FailedPrecondition(
        "cuBLASLt could not be opened (install nvidia-cublas-cu12, or set FT_CUBLASLT_LIBRARY); "
        "tried:",
        tried);
  }
#define FT_RESOLVE(name)                                                   \
  api->name = reinterpret_cast<decltype(api->name)>(dlsym(handle, #name)); \
  if (api->name == nullptr) {                                              \
    return FailedPrecondition(api->library, " has no function " #name);    \
  }
  FT_CUBLASLT_FUNCTIONS(FT_RESOLVE)
#undef FT_RESOLVE
  return OkStatus();
}

}  // namespace

Status GetCublasLt(const CublasLt** api) {
  // Never freed: kernels may still run while the process ends.
  static CublasLt* const functions = new CublasLt();
  static const Status* const status = new Status(Open(functions));
  *api = functions;
  return *status;
}

Status GetCublasLtHandle(const CublasLt** api, cublasLtHandle_t* handle) {
  FT_RETURN_IF_ERROR(GetCublasLt(api));
  int device;
  FT_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  static std::mutex mutex;
  static auto* const handles = new std::map<int, cublasLtHandle_t>();
  std::lock_guard<std::mutex> lock(mutex);
  cublasLtHandle_t& entry = (*handles)[device];
  if (entry == nullptr) FT_RETURN_IF_CUBLAS_ERROR((*api)->cublasLtCreate(&entry));
  *handle = entry;
  return OkStatus();
}

Status CublasStatus(cublasStatus_t status, const char* expression) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return OkStatus();
    case CUBLAS_STATUS_ALLOC_FAILED:
      return ResourceExhausted(expression, " returned CUBLAS_STATUS_ALLOC_FAILED");
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return Unimplemented(expression, " returned CUBLAS_STATUS_NOT_SUPPORTED");
    default:
      return Internal(expression, " returned cuBLAS status ", static_cast<int>(status));
  }
}

}  // namespace cuda
}  // namespace ft
