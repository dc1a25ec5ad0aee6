// What computes each product of float16 or bfloat16: the fastest that was measured, else a rule's.
#pragma once

#include <string>
#include <vector>

#include "tf_ops/cuda/gemm/half/half_gemm.h"
#include "tf_ops/cuda/gemm/tuned_kinds.h"

namespace ft {
namespace cuda {

inline ProductKey KeyOf(const GemmShape& product) {
  return {product.rows,
          product.n,
          product.k,
          static_cast<int64_t>(product.dtype),
          static_cast<int64_t>(product.epilogue),
          product.residual};
}

// One row of half_gemm_config.in.
using TunedHalfGemm = TunedKind<GemmShape, HalfGemmKind>;

// half_gemm_config.in in `directory`.
std::string HalfGemmConfigPath(const std::string& directory);

// As ReadGemmConfig and UpdateGemmConfig, of half_gemm_config.in.
Status ReadHalfGemmConfig(const std::string& path, const std::string& environment,
                          std::vector<TunedHalfGemm>* rows, int* num_foreign);
Status UpdateHalfGemmConfig(const std::string& path, const std::string& environment,
                            const std::vector<TunedHalfGemm>& rows);

// The GPU, driver, cuBLASLt version and generation of our kernels that a tuned kind belongs to,
// without spaces.
Status HalfGemmEnvironment(std::string* key);

// Any number of threads.
class HalfKinds {
 public:
  // `cublaslt_only`: never a kernel of CUTLASS.
  explicit HalfKinds(bool cublaslt_only) : cublaslt_only_(cublaslt_only) {}

  // Takes the rows of half_gemm_config.in in `directory` that fit this device; reports once to
  // stderr what does not. Empty: no file.
  void LoadConfig(const std::string& directory);

  // What was tuned for the product or for its rows rounded up, else SelectHalfGemm's.
  HalfGemmKind Choose(const GemmShape& product, const LaunchContext& context);

  // Whether tuning would measure nothing new.
  bool IsTuned(const GemmShape& product) { return cublaslt_only_ || tuned_.IsTuned(product); }
  void Keep(const TunedHalfGemm& row) { tuned_.Keep(row); }

 private:
  const bool cublaslt_only_;
  TunedKinds<TunedHalfGemm> tuned_;
};

}  // namespace cuda
}  // namespace ft
