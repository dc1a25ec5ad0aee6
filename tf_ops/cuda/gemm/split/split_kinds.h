// Which kernel computes each split product: the fastest that was measured, else a rule's.
#pragma once

#include <string>
#include <vector>

#include "tf_ops/cuda/gemm/split/split_gemm.h"
#include "tf_ops/cuda/gemm/tuned_kinds.h"

namespace ft {
namespace cuda {

// Parts of k follow from the other sizes; whether there are any tells two products apart where a
// layer's sizes are the same.
inline ProductKey KeyOf(const SplitGemmArgs& product) {
  return {product.rows, product.n, product.k, product.num_splits > 1 ? 1 : 0, 0};
}

// One row of split_gemm_config.in.
using TunedSplitGemm = TunedKind<SplitGemmArgs, SplitGemmKind>;

// split_gemm_config.in in `directory`.
std::string SplitGemmConfigPath(const std::string& directory);

// As ReadGemmConfig and UpdateGemmConfig, of split_gemm_config.in.
Status ReadSplitGemmConfig(const std::string& path, const std::string& environment,
                           std::vector<TunedSplitGemm>* rows, int* num_foreign);
Status UpdateSplitGemmConfig(const std::string& path, const std::string& environment,
                             const std::vector<TunedSplitGemm>& rows);

// The GPU, driver and generation of our kernels that a tuned kind belongs to, without spaces.
Status SplitGemmEnvironment(std::string* key);

// Any number of threads.
class SplitKinds {
 public:
  // `few_rows`: up to so many rows kFewRows, else never. -1: what was tuned or SelectSplitGemm's.
  explicit SplitKinds(int64_t few_rows) : few_rows_(few_rows) {}

  // Takes the rows of split_gemm_config.in in `directory` that fit this device; reports once to
  // stderr what does not. Empty: no file.
  void LoadConfig(const std::string& directory);

  SplitGemmKind Choose(const SplitGemmArgs& product, const LaunchContext& context);

  bool IsTuned(const SplitGemmArgs& product) { return tuned_.IsTuned(product); }
  void Keep(const TunedSplitGemm& row) { tuned_.Keep(row); }

 private:
  const int64_t few_rows_;
  TunedKinds<TunedSplitGemm> tuned_;
};

}  // namespace cuda
}  // namespace ft
