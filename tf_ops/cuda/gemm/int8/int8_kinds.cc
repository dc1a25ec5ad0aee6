#include "tf_ops/cuda/gemm/int8/int8_kinds.h"

#include <algorithm>
#include <sstream>

namespace ft {
namespace cuda {
namespace {

// To be raised when the kernels change, so that no old choice stands.
constexpr int kKernelGeneration = 4;

constexpr char kHeader[] =
    "batch_size seq_len head_num size_per_head dataType ### batchCount n m k activation kernel "
    "exec_time environment";

std::string FormatRow(const TunedInt8Gemm& row, const std::string& environment) {
  const Int8GemmArgs& p = row.product;
  std::ostringstream line;
  line << row.batch_size << ' ' << row.seq_len << ' ' << row.num_heads << ' ' << row.head_size
       << ' ' << static_cast<int>(p.output_dtype) << " ### 1 " << p.n << ' ' << p.rows << ' ' << p.k
       << ' ' << static_cast<int>(p.activation) << ' ' << static_cast<int>(row.kind) << ' '
       << row.milliseconds << ' ' << environment;
  if (p.input_dtype != DataType::kInt8) line << ' ' << Name(p.input_dtype);
  return line.str();
}

// False if the line is damaged.
bool ParseRow(const std::string& line, TunedInt8Gemm* row, std::string* environment) {
  std::istringstream in(line);
  int dtype, batch_count, activation, kind;
  std::string hashes, rest;
  Int8GemmArgs& p = row->product;
  if (!(in >> row->batch_size >> row->seq_len >> row->num_heads >> row->head_size >> dtype >>
        hashes >> batch_count >> p.n >> p.rows >> p.k >> activation >> kind >> row->milliseconds >>
        *environment)) {
    return false;
  }
  // Rows of integers end here.
  const char* const kFloat8 = Name(DataType::kFloat8);
  if (in >> rest) {
    std::string more;
    if (rest != kFloat8 || in >> more) return false;
    p.input_dtype = DataType::kFloat8;
  } else {
    p.input_dtype = DataType::kInt8;
  }
  const DataType types[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16,
                            p.input_dtype};
  const bool is_type = std::any_of(std::begin(types), std::end(types),
                                   [&](DataType type) { return static_cast<int>(type) == dtype; });
  if (hashes != "###" || batch_count != 1 || !is_type || p.n <= 0 || p.rows <= 0 || p.k <= 0 ||
      activation < static_cast<int>(Int8Activation::kNone) ||
      activation > static_cast<int>(Int8Activation::kGeluTanhExact) || kind < 0 ||
      kind >= kNumInt8GemmKinds) {
    return false;
  }
  p.output_dtype = static_cast<DataType>(dtype);
  p.activation = static_cast<Int8Activation>(activation);
  row->kind = static_cast<Int8GemmKind>(kind);
  return true;
}

constexpr ConfigFormat<TunedInt8Gemm> kFormat = {
    kHeader, FormatRow, ParseRow, [](const TunedInt8Gemm& a, const TunedInt8Gemm& b) {
      return KeyOf(a.product) == KeyOf(b.product);
    }};

}  // namespace

std::string Int8GemmConfigPath(const std::string& directory) {
  return directory + "/igemm_config.in";
}

Status Int8GemmEnvironment(std::string* key) {
  return ConfigEnvironment(StrCat("kernels-", kKernelGeneration), key);
}

Status ReadInt8GemmConfig(const std::string& path, const std::string& environment,
                          std::vector<TunedInt8Gemm>* rows, int* num_foreign) {
  return ReadConfig(kFormat, path, environment, rows, num_foreign);
}

Status UpdateInt8GemmConfig(const std::string& path, const std::string& environment,
                            const std::vector<TunedInt8Gemm>& rows) {
  return UpdateConfig(kFormat, path, environment, rows);
}

void Int8Kinds::LoadConfig(const std::string& directory) {
  if (directory.empty() || plain_only_) return;
  tuned_.Load(kFormat, Int8GemmConfigPath(directory), Int8GemmEnvironment);
}

Int8GemmKind Int8Kinds::Choose(const Int8GemmArgs& product, const LaunchContext& context) {
  if (plain_only_) return Int8GemmKind::kPlain;
  const auto tuned = tuned_.Find(
      product, [&](Int8GemmKind kind) { return Int8GemmSupported(product, kind, context); });
  return tuned.has_value() ? *tuned : SelectInt8Gemm(product, context);
}

}  // namespace cuda
}  // namespace ft
