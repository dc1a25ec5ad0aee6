#include "tf_ops/cuda/gemm/half/half_kinds.h"

#include <sstream>

#include "tf_ops/cuda/gemm/cublaslt.h"

namespace ft {
namespace cuda {
namespace {

// To be raised when the kernels change, so that no old choice stands.
constexpr int kKernelGeneration = 4;

constexpr char kHeader[] =
    "batch_size seq_len head_num size_per_head dataType ### batchCount n m k epilogue residual "
    "kernel exec_time environment";

std::string FormatRow(const TunedHalfGemm& row, const std::string& environment) {
  const GemmShape& p = row.product;
  std::ostringstream line;
  line << row.batch_size << ' ' << row.seq_len << ' ' << row.num_heads << ' ' << row.head_size
       << ' ' << static_cast<int>(p.dtype) << " ### 1 " << p.n << ' ' << p.rows << ' ' << p.k << ' '
       << static_cast<int>(p.epilogue) << ' ' << p.residual << ' ' << static_cast<int>(row.kind)
       << ' ' << row.milliseconds << ' ' << environment;
  return line.str();
}

// False if the line is damaged.
bool ParseRow(const std::string& line, TunedHalfGemm* row, std::string* environment) {
  std::istringstream in(line);
  int dtype, batch_count, epilogue, kind;
  std::string hashes, rest;
  GemmShape& p = row->product;
  if (!(in >> row->batch_size >> row->seq_len >> row->num_heads >> row->head_size >> dtype >>
        hashes >> batch_count >> p.n >> p.rows >> p.k >> epilogue >> p.residual >> kind >>
        row->milliseconds >> *environment) ||
      in >> rest) {
    return false;
  }
  p.dtype = static_cast<DataType>(dtype);
  if (hashes != "###" || batch_count != 1 || !IsHalf(p.dtype) || p.n <= 0 || p.rows <= 0 ||
      p.k <= 0 || epilogue < static_cast<int>(GemmEpilogue::kNone) ||
      epilogue > static_cast<int>(GemmEpilogue::kBiasGeluErf) || kind < 0 ||
      kind >= kNumHalfGemmKinds) {
    return false;
  }
  p.epilogue = static_cast<GemmEpilogue>(epilogue);
  row->kind = static_cast<HalfGemmKind>(kind);
  return true;
}

constexpr ConfigFormat<TunedHalfGemm> kFormat = {
    kHeader, FormatRow, ParseRow, [](const TunedHalfGemm& a, const TunedHalfGemm& b) {
      return KeyOf(a.product) == KeyOf(b.product);
    }};

}  // namespace

std::string HalfGemmConfigPath(const std::string& directory) {
  return directory + "/half_gemm_config.in";
}

Status HalfGemmEnvironment(std::string* key) {
  const CublasLt* api;
  FT_RETURN_IF_ERROR(GetCublasLt(&api));
  return ConfigEnvironment(
      StrCat("cublasLt-", api->cublasLtGetVersion(), "/kernels-", kKernelGeneration), key);
}

Status ReadHalfGemmConfig(const std::string& path, const std::string& environment,
                          std::vector<TunedHalfGemm>* rows, int* num_foreign) {
  return ReadConfig(kFormat, path, environment, rows, num_foreign);
}

Status UpdateHalfGemmConfig(const std::string& path, const std::string& environment,
                            const std::vector<TunedHalfGemm>& rows) {
  return UpdateConfig(kFormat, path, environment, rows);
}

void HalfKinds::LoadConfig(const std::string& directory) {
  if (directory.empty() || cublaslt_only_) return;
  tuned_.Load(kFormat, HalfGemmConfigPath(directory), HalfGemmEnvironment);
}

HalfGemmKind HalfKinds::Choose(const GemmShape& product, const LaunchContext& context) {
  if (cublaslt_only_) return HalfGemmKind::kCublasLt;
  const auto tuned = tuned_.Find(
      product, [&](HalfGemmKind kind) { return HalfGemmSupported(product, kind, context); });
  return tuned.has_value() ? *tuned : SelectHalfGemm(product, context);
}

}  // namespace cuda
}  // namespace ft
