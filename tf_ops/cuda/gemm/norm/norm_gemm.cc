#include "tf_ops/cuda/gemm/norm/norm_gemm.h"

#include "tf_ops/cuda/gemm/norm/hopper.h"

namespace ft {
namespace cuda {
namespace {

// The kernels of these types, if there are such.
std::optional<HopperNorm> FindKernels(const NormGemmArgs& args) {
#ifdef FT_WITH_CUTLASS
  const bool is_half = args.dtype == DataType::kFloat16;
  if (!is_half && args.dtype != DataType::kBFloat16) return std::nullopt;
  if (args.input_dtype == DataType::kFloat8) {
    return is_half ? HopperNormFloat8Half() : HopperNormFloat8BFloat();
  }
  if (args.input_dtype == DataType::kInt8) {
    return is_half ? HopperNormInt8Half() : HopperNormInt8BFloat();
  }
#endif
  return std::nullopt;  // or built for no architecture that has them
}

// What the busiest group of blocks has to do, in columns of 64 rows a block; none if there is no
// such kernel.
std::optional<int64_t> BusiestWork(const NormGemmArgs& args, NormGemmKind kind,
                                   const LaunchContext& context) {
  NormGroups groups = {};
  if (!NormGemmSupported(args, context) ||
      !FindKernels(args)->find_groups(args, kind, context, &groups).ok() || groups.count == 0) {
    return std::nullopt;
  }
  const int64_t units = (args.rows + 63) / 64;
  return (units + groups.count - 1) / groups.count * groups.block_columns;
}

}  // namespace

const char* Name(NormGemmKind kind) {
  switch (kind) {
    case NormGemmKind::kCluster:
      return "norm by a cluster";
    case NormGemmKind::kGroup:
      return "norm by a group";
  }
  return "unknown";
}

int64_t NormSumsBytes(int64_t rows) {
  constexpr int64_t kUnitRows = 64, kRowBytes = 32;
  return (rows + kUnitRows - 1) / kUnitRows * kUnitRows * kRowBytes;
}

bool NormGemmSupported(const NormGemmArgs& args, const LaunchContext& context) {
  if (!FindKernels(args).has_value() || context.compute_capability != 90) return false;
  // Tensor copies move 16 bytes of a row at least.
  if (args.k * SizeOf(args.input_dtype) % 16 != 0) return false;
  return args.n == 768 || args.n == 1024;
}

std::optional<NormGemmKind> SelectNormGemm(const NormGemmArgs& args, const LaunchContext& context) {
  // As an H200 measured BERT-base (benchmarks/gpu_profile.md): with fewer rows than that have a
  // group each, more blocks of smaller tiles and a layer norm are faster.
  constexpr int64_t kMinRows = 2048;
  if (args.rows < kMinRows) return std::nullopt;
  const std::optional<int64_t> by_cluster = BusiestWork(args, NormGemmKind::kCluster, context),
                               by_group = BusiestWork(args, NormGemmKind::kGroup, context);
  if (!by_cluster.has_value() && !by_group.has_value()) return std::nullopt;
  // Device memory takes longer: only where more multiprocessors leave each less to do.
  const bool is_group =
      !by_cluster.has_value() || (by_group.has_value() && *by_group < *by_cluster);
  return is_group ? NormGemmKind::kGroup : NormGemmKind::kCluster;
}

Status LaunchNormGemm(const NormGemmArgs& args, NormGemmKind kind, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (!NormGemmSupported(args, context)) {
    return Internal("a product of ", Name(args.input_dtype), " ", args.rows, "x", args.k, "x",
                    args.n, " with a layer norm to ", Name(args.dtype), " was given to the ",
                    Name(kind), " kernel");
  }
  return FindKernels(args)->launch(args, kind, context);
}

}  // namespace cuda
}  // namespace ft
