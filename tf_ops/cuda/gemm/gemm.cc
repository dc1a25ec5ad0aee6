#include "tf_ops/cuda/gemm/gemm.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm/cublaslt.h"
#include "tf_ops/cuda/gemm/timing.h"

namespace ft {
namespace cuda {
namespace {

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(GemmAlgorithm), "cuBLASLt's opaque form");

constexpr size_t kMaxRemembered = 4096;
constexpr int kMaxCandidates = 32;

cudaDataType_t CudaType(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat16:
      return CUDA_R_16F;
    case DataType::kBFloat16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// The descriptors of one product. cuBLASLt is column-major: output^T[n,rows] = w[n,k] x^T[k,rows],
// where w row-major [n,k] is a column-major [k,n] matrix to be transposed.
class Descriptors {
 public:
  ~Descriptors() {
    if (api_ == nullptr) return;
    for (cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) api_->cublasLtMatrixLayoutDestroy(layout);
    }
    if (op != nullptr) api_->cublasLtMatmulDescDestroy(op);
  }

  Status Init(const CublasLt* api, const GemmShape& shape, const void* bias) {
    api_ = api;
    if (!CublasLtHas(shape.epilogue)) {
      return Internal("a product with the GELU of erf was given to cuBLASLt");
    }
    const cudaDataType_t type = CudaType(shape.dtype);
    const cublasComputeType_t compute = shape.dtype == DataType::kFloat32 && shape.allow_tf32
                                            ? CUBLAS_COMPUTE_32F_FAST_TF32
                                            : CUBLAS_COMPUTE_32F;
    FT_RETURN_IF_CUBLAS_ERROR(api->cublasLtMatmulDescCreate(&op, compute, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    FT_RETURN_IF_CUBLAS_ERROR(api->cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA,
                                                                  &transpose, sizeof(transpose)));
    const cublasLtEpilogue_t epilogues[] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS,
                                            CUBLASLT_EPILOGUE_GELU_BIAS,
                                            CUBLASLT_EPILOGUE_RELU_BIAS};
    const cublasLtEpilogue_t epilogue = epilogues[static_cast<int>(shape.epilogue)];
    FT_RETURN_IF_CUBLAS_ERROR(api->cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                                  &epilogue, sizeof(epilogue)));
    has_bias_ = shape.epilogue != GemmEpilogue::kNone;
    FT_RETURN_IF_ERROR(SetBias(bias));
    FT_RETURN_IF_CUBLAS_ERROR(api->cublasLtMatrixLayoutCreate(&w, type, shape.k, shape.n, shape.k));
    FT_RETURN_IF_CUBLAS_ERROR(
        api->cublasLtMatrixLayoutCreate(&x, type, shape.k, shape.rows, shape.k));
    FT_RETURN_IF_CUBLAS_ERROR(
        api->cublasLtMatrixLayoutCreate(&y, type, shape.n, shape.rows, shape.n));
    return OkStatus();
  }

  Status SetBias(const void* bias) {
    if (!has_bias_) return OkStatus();
    FT_RETURN_IF_CUBLAS_ERROR(api_->cublasLtMatmulDescSetAttribute(
        op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
    return OkStatus();
  }

  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;

 private:
  const CublasLt* api_ = nullptr;
  bool has_bias_ = false;
};

// Up to `count` algorithms for `shape`, the heuristic's favourite first.
Status Heuristics(const CublasLt* api, cublasLtHandle_t handle, const GemmShape& shape, int count,
                  std::vector<cublasLtMatmulHeuristicResult_t>* results) {
  Descriptors d;
  // Only the bias pointer's alignment matters here.
  FT_RETURN_IF_ERROR(d.Init(api, shape, reinterpret_cast<const void*>(uintptr_t{256})));
  cublasLtMatmulPreference_t preference;
  FT_RETURN_IF_CUBLAS_ERROR(api->cublasLtMatmulPreferenceCreate(&preference));
  const uint64_t bytes = kGemmWorkspaceBytes;
  cublasStatus_t status = api->cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
  int found = 0;
  results->resize(count);
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = api->cublasLtMatmulAlgoGetHeuristic(handle, d.op, d.w, d.x, d.y, d.y, preference,
                                                 count, results->data(), &found);
  }
  api->cublasLtMatmulPreferenceDestroy(preference);
  FT_RETURN_IF_ERROR(CublasStatus(status, "cublasLtMatmulAlgoGetHeuristic"));
  results->resize(found);
  if (found == 0) {
    return Unimplemented("cuBLASLt has no algorithm for ", shape.rows, "x", shape.k, "x", shape.n,
                         " in ", Name(shape.dtype));
  }
  return OkStatus();
}

cublasStatus_t Multiply(const CublasLt* api, cublasLtHandle_t handle, const Descriptors& d,
                        const GemmArgs& args, const void* w, const GemmAlgorithm& algorithm,
                        cudaStream_t stream) {
  cublasLtMatmulAlgo_t algo;
  std::memcpy(&algo, algorithm.data(), sizeof(algo));
  const float one = 1.f, beta = args.shape.residual ? 1.f : 0.f;
  const void* c = args.shape.residual ? args.residual : args.output;
  return api->cublasLtMatmul(handle, d.op, &one, w, d.w, args.x, d.x, &beta, c, d.y, args.output,
                             d.y, &algo, args.workspace, kGemmWorkspaceBytes, stream);
}

GemmAlgorithm ToAlgorithm(const cublasLtMatmulAlgo_t& algo) {
  GemmAlgorithm result;
  std::memcpy(result.data(), &algo, sizeof(algo));
  return result;
}

// Whether cuBLASLt would run the algorithm for the shape: the bytes may come from a file.
bool IsAccepted(const CublasLt* api, cublasLtHandle_t handle, const GemmShape& shape,
                const GemmAlgorithm& algorithm) {
  Descriptors d;
  if (!d.Init(api, shape, reinterpret_cast<const void*>(uintptr_t{256})).ok()) return false;
  cublasLtMatmulAlgo_t algo;
  std::memcpy(&algo, algorithm.data(), sizeof(algo));
  cublasLtMatmulHeuristicResult_t result = {};
  return api->cublasLtMatmulAlgoCheck(handle, d.op, d.w, d.x, d.y, d.y, &algo, &result) ==
             CUBLAS_STATUS_SUCCESS &&
         result.state == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<size_t>(kGemmWorkspaceBytes);
}

}  // namespace

int64_t RoundRows(int64_t rows) {
  const int64_t step = rows <= 16 ? 16 : rows <= 512 ? 32 : rows <= 4096 ? 128 : 256;
  return AlignUp(rows, step);
}

struct Gemm::Product {
  Descriptors descriptors;
  GemmAlgorithm algorithm;
};

Gemm::Gemm() = default;
Gemm::~Gemm() = default;

Gemm::Key Gemm::MakeKey(const GemmShape& s) {
  return {static_cast<int>(s.dtype),    s.allow_tf32, s.rows, s.n, s.k,
          static_cast<int>(s.epilogue), s.residual};
}

void Gemm::LoadConfig(const std::string& directory) {
  if (directory.empty()) return;
  const std::string path = GemmConfigPath(directory);
  std::string environment;
  std::vector<TunedGemm> rows;
  int num_foreign = 0, num_refused = 0;
  const CublasLt* api = nullptr;
  cublasLtHandle_t handle = nullptr;
  Status status = GetCublasLtHandle(&api, &handle);
  if (status.ok()) status = GemmEnvironment(&environment);
  if (status.ok()) status = ReadGemmConfig(path, environment, &rows, &num_foreign);
  for (const TunedGemm& row : rows) {
    if (!IsAccepted(api, handle, row.shape, row.algorithm)) {
      ++num_refused;
      continue;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    tuned_[MakeKey(row.shape)] = row.algorithm;
    products_.clear();
  }
  static std::once_flag reported;
  if (num_refused > 0) {
    std::call_once(reported, [&] {
      fprintf(
          stderr,
          "[WARNING] %d rows of %s hold an algorithm that cuBLASLt refuses for their sizes; they "
          "are ignored\n",
          num_refused, path.c_str());
    });
    return;
  }
  if (!status.ok() && status.code() == StatusCode::kInvalidArgument) {
    std::call_once(reported, [&] {
      fprintf(stderr, "[WARNING] %s is ignored: %s\n", path.c_str(), status.message().c_str());
    });
  } else if (num_foreign > 0) {
    std::call_once(reported, [&] {
      fprintf(stderr, "[WARNING] %d rows of %s are for another GPU, driver or cuBLASLt than %s\n",
              num_foreign, path.c_str(), environment.c_str());
    });
  }
}

bool Gemm::IsTuned(const GemmShape& shape) {
  std::lock_guard<std::mutex> lock(mutex_);
  return tuned_.count(MakeKey(shape)) > 0;
}

// The algorithm that was tuned for the shape or for its rows rounded up, or the heuristic's.
Status Gemm::Choose(const GemmShape& shape, GemmAlgorithm* algorithm) {
  GemmShape rounded = shape;
  rounded.rows = RoundRows(shape.rows);
  for (const GemmShape& s : {shape, rounded}) {
    const auto found = tuned_.find(MakeKey(s));
    if (found != tuned_.end()) {
      *algorithm = found->second;
      return OkStatus();
    }
  }
  const Key key = MakeKey(rounded);
  auto found = heuristic_.find(key);
  if (found == heuristic_.end()) {
    const CublasLt* api;
    cublasLtHandle_t handle;
    std::vector<cublasLtMatmulHeuristicResult_t> results;
    FT_RETURN_IF_ERROR(GetCublasLtHandle(&api, &handle));
    FT_RETURN_IF_ERROR(Heuristics(api, handle, rounded, 1, &results));
    if (heuristic_.size() >= kMaxRemembered) heuristic_.clear();
    found = heuristic_.emplace(key, ToAlgorithm(results[0].algo)).first;
  }
  *algorithm = found->second;
  return OkStatus();
}

Status Gemm::GetProduct(const GemmShape& shape, Product** product) {
  std::unique_ptr<Product>& entry = products_[MakeKey(shape)];
  if (entry == nullptr) {
    const CublasLt* api;
    FT_RETURN_IF_ERROR(GetCublasLt(&api));
    auto made = std::make_unique<Product>();
    FT_RETURN_IF_ERROR(made->descriptors.Init(api, shape, nullptr));
    FT_RETURN_IF_ERROR(Choose(shape, &made->algorithm));
    entry = std::move(made);
  }
  *product = entry.get();
  return OkStatus();
}

Status Gemm::Run(const GemmArgs& args, cudaStream_t stream) {
  if (args.shape.rows == 0) return OkStatus();
  const CublasLt* api;
  cublasLtHandle_t handle;
  FT_RETURN_IF_ERROR(GetCublasLtHandle(&api, &handle));
  // Held while the product is launched: its descriptor is given this call's bias.
  std::lock_guard<std::mutex> lock(mutex_);
  if (products_.size() >= kMaxRemembered) products_.clear();
  Product* product;
  FT_RETURN_IF_ERROR(GetProduct(args.shape, &product));
  FT_RETURN_IF_ERROR(product->descriptors.SetBias(args.bias));
  cublasStatus_t status =
      Multiply(api, handle, product->descriptors, args, args.w, product->algorithm, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    // The algorithm for the rounded rows does not take these rows: they get one of their own.
    std::vector<cublasLtMatmulHeuristicResult_t> results;
    FT_RETURN_IF_ERROR(Heuristics(api, handle, args.shape, 1, &results));
    product->algorithm = ToAlgorithm(results[0].algo);
    status = Multiply(api, handle, product->descriptors, args, args.w, product->algorithm, stream);
  }
  return CublasStatus(status, "cublasLtMatmul");
}

Status Gemm::Tune(const GemmArgs& args, const std::vector<const void*>& weights,
                  cudaStream_t stream, TunedGemm* result) {
  const CublasLt* api;
  cublasLtHandle_t handle;
  FT_RETURN_IF_ERROR(GetCublasLtHandle(&api, &handle));
  std::vector<cublasLtMatmulHeuristicResult_t> candidates;
  FT_RETURN_IF_ERROR(Heuristics(api, handle, args.shape, kMaxCandidates, &candidates));
  Descriptors d;
  FT_RETURN_IF_ERROR(d.Init(api, args.shape, args.bias));
  result->shape = args.shape;
  result->milliseconds = -1.f;
  LaunchTimer timer;
  FT_RETURN_IF_ERROR(timer.Init(stream));
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates) {
    const GemmAlgorithm algorithm = ToAlgorithm(candidate.algo);
    // The first run also tells whether there is any.
    if (Multiply(api, handle, d, args, weights[0], algorithm, timer.stream()) !=
        CUBLAS_STATUS_SUCCESS) {
      continue;
    }
    const auto launch = [&](int run, cudaStream_t on) {
      return CublasStatus(
          Multiply(api, handle, d, args, weights[run % weights.size()], algorithm, on),
          "cublasLtMatmul");
    };
    float milliseconds;
    FT_RETURN_IF_ERROR(timer.Time(launch, TimedRuns(weights.size()), &milliseconds));
    if (result->milliseconds < 0.f || milliseconds < result->milliseconds) {
      result->milliseconds = milliseconds;
      result->algorithm = algorithm;
    }
  }
  if (result->milliseconds < 0.f) return Internal("no cuBLASLt algorithm ran in the GEMM test");
  std::lock_guard<std::mutex> lock(mutex_);
  if (tuned_.size() >= kMaxRemembered) tuned_.clear();
  tuned_[MakeKey(args.shape)] = result->algorithm;
  products_.clear();  // Some may have been made with another.
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
