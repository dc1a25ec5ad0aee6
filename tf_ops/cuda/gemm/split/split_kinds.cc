#include "tf_ops/cuda/gemm/split/split_kinds.h"

#include <sstream>

namespace ft {
namespace cuda {

namespace {

// To be raised when the kernels change, so that no old choice stands.
constexpr int kKernelGeneration = 1;

constexpr char kHeader[] =
    "batch_size seq_len head_num size_per_head dataType ### batchCount n m k numSplitsK kernel "
    "exec_time environment";

std::string FormatRow(const TunedSplitGemm& row, const std::string& environment) {
  const SplitGemmArgs& p = row.product;
  std::ostringstream line;
  line << row.batch_size << ' ' << row.seq_len << ' ' << row.num_heads << ' ' << row.head_size
       << ' ' << static_cast<int>(DataType::kFloat32) << " ### 1 " << p.n << ' ' << p.rows << ' '
       << p.k << ' ' << p.num_splits << ' ' << static_cast<int>(row.kind) << ' ' << row.milliseconds
       << ' ' << environment;
  return line.str();
}

// False if the line is damaged.
bool ParseRow(const std::string& line, TunedSplitGemm* row, std::string* environment) {
  std::istringstream in(line);
  int dtype, batch_count, kind;
  std::string hashes, rest;
  SplitGemmArgs& p = row->product;
  if (!(in >> row->batch_size >> row->seq_len >> row->num_heads >> row->head_size >> dtype >>
        hashes >> batch_count >> p.n >> p.rows >> p.k >> p.num_splits >> kind >>
        row->milliseconds >> *environment) ||
      in >> rest) {
    return false;
  }
  if (hashes != "###" || batch_count != 1 || dtype != static_cast<int>(DataType::kFloat32) ||
      p.n <= 0 || p.rows <= 0 || p.k <= 0 || p.num_splits <= 0 || kind < 0 ||
      kind >= kNumSplitGemmKinds) {
    return false;
  }
  row->kind = static_cast<SplitGemmKind>(kind);
  return true;
}

constexpr ConfigFormat<TunedSplitGemm> kFormat = {
    kHeader, FormatRow, ParseRow, [](const TunedSplitGemm& a, const TunedSplitGemm& b) {
      return KeyOf(a.product) == KeyOf(b.product);
    }};

}  // namespace

std::string SplitGemmConfigPath(const std::string& directory) {
  return directory + "/split_gemm_config.in";
}

Status SplitGemmEnvironment(std::string* key) {
  return ConfigEnvironment(StrCat("kernels-", kKernelGeneration), key);
}

Status ReadSplitGemmConfig(const std::string& path, const std::string& environment,
                           std::vector<TunedSplitGemm>* rows, int* num_foreign) {
  return ReadConfig(kFormat, path, environment, rows, num_foreign);
}

Status UpdateSplitGemmConfig(const std::string& path, const std::string& environment,
                             const std::vector<TunedSplitGemm>& rows) {
  return UpdateConfig(kFormat, path, environment, rows);
}

void SplitKinds::LoadConfig(const std::string& directory) {
  if (directory.empty() || few_rows_ >= 0) return;
  tuned_.Load(kFormat, SplitGemmConfigPath(directory), SplitGemmEnvironment);
}

SplitGemmKind SplitKinds::Choose(const SplitGemmArgs& product, const LaunchContext& context) {
  if (few_rows_ < 0) {
    const auto tuned = tuned_.Find(
        product, [&](SplitGemmKind kind) { return SplitGemmSupported(product, kind, context); });
    if (tuned.has_value()) return *tuned;
  }
  return SelectSplitGemm(product, few_rows_, context);
}

}  // namespace cuda
}  // namespace ft
