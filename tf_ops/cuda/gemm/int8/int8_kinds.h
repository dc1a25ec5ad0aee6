// Which kernel computes each product of integers: the fastest that was measured, else a rule's.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

namespace ft {
namespace cuda {

// One row of igemm_config.in.
struct TunedInt8Gemm {
  int64_t batch_size = 0, seq_len = 0, num_heads = 0, head_size = 0;  // for the reader only
  Int8GemmArgs product;  // sizes, output type and activation; no pointers
  Int8GemmKind kind = Int8GemmKind::kPlain;
  float milliseconds = 0.f;
};

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

  bool IsTuned(const Int8GemmArgs& product);
  void Keep(const TunedInt8Gemm& row);

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, int>;
  static Key MakeKey(const Int8GemmArgs& product);

  const bool plain_only_;
  std::mutex mutex_;
  std::map<Key, Int8GemmKind> tuned_;  // bounded
};

}  // namespace cuda
}  // namespace ft
