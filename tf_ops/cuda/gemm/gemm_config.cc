// gemm_config.in: the tuned algorithms of a machine.
#include <stdio.h>
#include <stdlib.h>

#include <cinttypes>
#include <sstream>

#include "tf_ops/cuda/gemm/config_file.h"
#include "tf_ops/cuda/gemm/cublaslt.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace ft {
namespace cuda {
namespace {

constexpr char kHeader[] =
    "batch_size seq_len head_num size_per_head dataType ### batchCount n m k algoId customOption "
    "tile numSplitsK swizzle reductionScheme workspaceSize stages exec_time epilogue residual tf32 "
    "environment algorithm";

bool SameShape(const GemmShape& a, const GemmShape& b) {
  return a.dtype == b.dtype && a.allow_tf32 == b.allow_tf32 && a.rows == b.rows && a.n == b.n &&
         a.k == b.k && a.epilogue == b.epilogue && a.residual == b.residual;
}

// The config attributes in the columns between k and exec_time; for people, not read back.
std::string Attributes(const GemmAlgorithm& algorithm) {
  const CublasLt* api;
  if (!GetCublasLt(&api).ok()) return "-1 -1 -1 -1 -1 -1 0 -1";
  const auto* algo = reinterpret_cast<const cublasLtMatmulAlgo_t*>(algorithm.data());
  const cublasLtMatmulAlgoConfigAttributes_t names[] = {CUBLASLT_ALGO_CONFIG_ID,
                                                        CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION,
                                                        CUBLASLT_ALGO_CONFIG_TILE_ID,
                                                        CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                        CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING,
                                                        CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME};
  std::string text;
  const auto get = [&](cublasLtMatmulAlgoConfigAttributes_t name) {
    int32_t value = -1;
    size_t written = 0;
    if (api->cublasLtMatmulAlgoConfigGetAttribute(algo, name, &value, sizeof(value), &written) !=
        CUBLAS_STATUS_SUCCESS) {
      value = -1;
    }
    return std::to_string(value);
  };
  for (auto name : names) text += get(name) + " ";
  return text + std::to_string(kGemmWorkspaceBytes) + " " + get(CUBLASLT_ALGO_CONFIG_STAGES_ID);
}

std::string FormatRow(const TunedGemm& row, const std::string& environment) {
  const GemmShape& s = row.shape;
  std::ostringstream line;
  line << row.batch_size << ' ' << row.seq_len << ' ' << row.num_heads << ' ' << row.head_size
       << ' ' << static_cast<int>(s.dtype) << " ### 1 " << s.n << ' ' << s.rows << ' ' << s.k << ' '
       << Attributes(row.algorithm) << ' ' << row.milliseconds << ' '
       << static_cast<int>(s.epilogue) << ' ' << s.residual << ' ' << s.allow_tf32 << ' '
       << environment << ' ';
  char word[20];
  for (uint64_t part : row.algorithm) {
    snprintf(word, sizeof(word), "%016" PRIx64, part);
    line << word;
  }
  return line.str();
}

// False if the line is damaged.
bool ParseRow(const std::string& line, TunedGemm* row, std::string* environment) {
  std::istringstream in(line);
  int dtype, batch_count, epilogue, attribute;
  std::string hashes, algorithm, rest;
  GemmShape& s = row->shape;
  if (!(in >> row->batch_size >> row->seq_len >> row->num_heads >> row->head_size >> dtype >>
        hashes >> batch_count >> s.n >> s.rows >> s.k)) {
    return false;
  }
  for (int i = 0; i < 8; ++i) {
    if (!(in >> attribute)) return false;
  }
  if (!(in >> row->milliseconds >> epilogue >> s.residual >> s.allow_tf32 >> *environment >>
        algorithm) ||
      in >> rest) {
    return false;
  }
  if (hashes != "###" || batch_count != 1 || dtype < 0 || dtype > 2 || epilogue < 0 ||
      epilogue > 3 || s.n <= 0 || s.rows <= 0 || s.k <= 0 || algorithm.size() != 128 ||
      algorithm.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return false;
  }
  s.dtype = static_cast<DataType>(dtype);
  s.epilogue = static_cast<GemmEpilogue>(epilogue);
  for (int i = 0; i < 8; ++i) {
    row->algorithm[i] = strtoull(algorithm.substr(i * 16, 16).c_str(), nullptr, 16);
  }
  return true;
}

constexpr ConfigFormat<TunedGemm> kFormat = {
    kHeader, FormatRow, ParseRow,
    [](const TunedGemm& a, const TunedGemm& b) { return SameShape(a.shape, b.shape); }};

}  // namespace

Status GemmEnvironment(std::string* key) {
  const CublasLt* api;
  FT_RETURN_IF_ERROR(GetCublasLt(&api));
  return ConfigEnvironment(StrCat("cublasLt-", api->cublasLtGetVersion()), key);
}

std::string GemmConfigPath(const std::string& directory) { return directory + "/gemm_config.in"; }

std::string CommandLineGemmConfigDir() {
  const char* directory = getenv("FT_GEMM_CONFIG_DIR");
  return directory == nullptr || *directory == 0 ? "." : directory;
}

Status ReadGemmConfig(const std::string& path, const std::string& environment,
                      std::vector<TunedGemm>* rows, int* num_foreign) {
  return ReadConfig(kFormat, path, environment, rows, num_foreign);
}

Status UpdateGemmConfig(const std::string& path, const std::string& environment,
                        const std::vector<TunedGemm>& rows) {
  return UpdateConfig(kFormat, path, environment, rows);
}

}  // namespace cuda
}  // namespace ft
