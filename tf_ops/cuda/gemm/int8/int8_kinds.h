// Which kernel computes each product of integers: the fastest that was measured, else a rule's.
#pragma once

#include <string>
#include <vector>

#include "tf_ops/cuda/gemm/int8/int8_gemm.h"
#include "tf_ops/cuda/gemm/tuned_kinds.h"

namespace ft {
namespace cuda {

inline ProductKey KeyOf(const Int8GemmArgs& product) {
  return {product.rows,
          product.n,
          product.k,
          static_cast<int64_t>(product.output_dtype),
          static_cast<int64_t>(product.activation),
          static_cast<int64_t>(product.input_dtype)};
}

// One row of igemm_config.in.
using TunedInt8Gemm = TunedKind<Int8GemmArgs, Int8GemmKind>;

// igemm_config.in in `directory`.
std::string Int8GemmConfigPath(const std::string& directory);

// As ReadGemmConfig and UpdateGemmConfig, of igemm_config.in.
Status ReadInt8GemmConfig(const std::string& path, const std::string& environment,
                          std::vector<TunedInt8Gemm>* rows, int* num_foreign);
Status UpdateInt8GemmConfig(const std::string& path, const std::string& environment,
                            const std::vector<TunedInt8Gemm>& rows);

// The GPU, driver and generation of our kernels that a tuned kind belongs to, without spaces.
Status Int8GemmEnvironment(std::string* key);

// Any number of threads.
class Int8Kinds {
 public:
  // `plain_only`: never a kernel of CUTLASS.
  explicit Int8Kinds(bool plain_only) : plain_only_(plain_only) {}

  // Takes the rows of igemm_config.in in `directory` that fit this device; reports once to stderr
  // what does not. Empty: no file.
  void LoadConfig(const std::string& directory);

  // What was tuned for the product or for its rows rounded up, else SelectInt8Gemm's.
  Int8GemmKind Choose(const Int8GemmArgs& product, const LaunchContext& context);

  bool IsTuned(const Int8GemmArgs& product) { return tuned_.IsTuned(product); }
  void Keep(const TunedInt8Gemm& row) { tuned_.Keep(row); }

 private:
  const bool plain_only_;
  TunedKinds<TunedInt8Gemm> tuned_;
};

}  // namespace cuda
}  // namespace ft
