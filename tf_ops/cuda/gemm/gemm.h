// Matrix products through cuBLASLt, with their epilogues, and the choice of its algorithms.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "tf_ops/core/types.h"

namespace ft {
namespace cuda {

// Given to cuBLASLt for its temporary data; NVIDIA's advice for Hopper.
inline constexpr int64_t kGemmWorkspaceBytes = int64_t{32} << 20;

enum class GemmEpilogue {
  kNone = 0,
  kBias = 1,
  kBiasGelu = 2,  // google's, with tanh
  kBiasRelu = 3,
  kBiasGeluErf = 4,
};

inline bool IsGelu(GemmEpilogue epilogue) {
  return epilogue == GemmEpilogue::kBiasGelu || epilogue == GemmEpilogue::kBiasGeluErf;
}

inline bool CublasLtHas(GemmEpilogue epilogue) { return epilogue != GemmEpilogue::kBiasGeluErf; }

// What an algorithm is chosen for.
struct GemmShape {
  DataType dtype = DataType::kFloat32;
  bool allow_tf32 = false;  // float32 only
  int64_t rows = 0, n = 0, k = 0;
  GemmEpilogue epilogue = GemmEpilogue::kNone;
  bool residual = false;
};

// output[rows,n] = epilogue(x[rows,k] w[n,k]^T + residual[rows,n]); bias [n]. float32 accumulation.
struct GemmArgs {
  GemmShape shape;
  const void* x = nullptr;
  const void* w = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;
  void* output = nullptr;
  void* workspace = nullptr;  // kGemmWorkspaceBytes
};

// A cuBLASLt algorithm: its serialised form, valid for the library version it came from.
using GemmAlgorithm = std::array<uint64_t, 8>;

// One row of gemm_config.in.
struct TunedGemm {
  int64_t batch_size = 0, seq_len = 0, num_heads = 0, head_size = 0;  // for the reader only
  GemmShape shape;
  GemmAlgorithm algorithm = {};
  float milliseconds = 0.f;
};

// The GPU, driver and cuBLASLt version that a tuned algorithm belongs to, without spaces.
Status GemmEnvironment(std::string* key);

// gemm_config.in in `directory`.
std::string GemmConfigPath(const std::string& directory);

// The folder that command lines use: $FT_GEMM_CONFIG_DIR, or else the working directory, as
// FasterTransformer's guide has it. A library inside somebody's process reads no file that merely
// lies in its working directory: there $FT_GEMM_CONFIG_DIR alone counts.
std::string CommandLineGemmConfigDir();

// Reads the rows of `path` that belong to `environment`. Rows of other environments are skipped and
// counted in `num_foreign`. A missing file is no error and gives no rows; a damaged one, or one
// that is no ordinary file, is InvalidArgument with the line. The algorithms are those bytes that
// the file holds: Gemm::LoadConfig lets cuBLASLt check them.
Status ReadGemmConfig(const std::string& path, const std::string& environment,
                      std::vector<TunedGemm>* rows, int* num_foreign);

// Puts `rows` in the file in place of rows for the same shapes, under a lock that several
// processes respect, by writing a new file and renaming it; neither follows a symbolic link. Other
// environments' rows stay. A damaged file is replaced.
Status UpdateGemmConfig(const std::string& path, const std::string& environment,
                        const std::vector<TunedGemm>& rows);

// Rows rounded up, so that ragged batches meet few shapes. The tiles of products have 128 rows or
// more where there are many; of few rows each costs.
int64_t RoundRows(int64_t rows);

// Runs products and remembers the algorithm and the descriptors of each shape, for the device that
// was current at first use. Any number of threads.
class Gemm {
 public:
  Gemm();
  ~Gemm();

  // Takes the rows of gemm_config.in in `directory` that fit this device and that cuBLASLt accepts
  // for their shapes; reports once to stderr what does not. Empty: no file.
  void LoadConfig(const std::string& directory);

  Status Run(const GemmArgs& args, cudaStream_t stream);

  bool IsTuned(const GemmShape& shape);

  // Times the algorithms that the heuristic offers, on the given operands, and keeps the fastest.
  // `weights` are several copies of w: the timed runs go round them, so that w comes from device
  // memory as it does in a model of many layers. Synchronises the stream.
  Status Tune(const GemmArgs& args, const std::vector<const void*>& weights, cudaStream_t stream,
              TunedGemm* result);

 private:
  using Key = std::tuple<int, bool, int64_t, int64_t, int64_t, int, bool>;
  struct Product;  // a shape's descriptors and algorithm

  static Key MakeKey(const GemmShape& shape);
  Status Choose(const GemmShape& shape, GemmAlgorithm* algorithm);
  Status GetProduct(const GemmShape& shape, Product** product);

  std::mutex mutex_;
  std::map<Key, GemmAlgorithm> tuned_;                // exact rows, or rows rounded up
  std::map<Key, GemmAlgorithm> heuristic_;            // rows rounded up
  std::map<Key, std::unique_ptr<Product>> products_;  // exact rows; bounded, as all are
};

}  // namespace cuda
}  // namespace ft
