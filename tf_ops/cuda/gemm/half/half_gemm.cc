#include "tf_ops/cuda/gemm/half/half_gemm.h"

#include <optional>

#include "tf_ops/cuda/gemm/cluster/cluster_gemm.h"
#include "tf_ops/cuda/gemm/half/hopper.h"
#include "tf_ops/cuda/gemm/one_round.h"

namespace ft {
namespace cuda {
namespace {

using Launcher = Status (*)(const GemmArgs&, const LaunchContext&);

// Of the kinds by clusters.
std::optional<ClusterTile> ClusterTileOf(HalfGemmKind kind) {
  switch (kind) {
    case HalfGemmKind::kCluster64x64Parts4:
      return ClusterTile::k64x64Parts4;
    case HalfGemmKind::kCluster64x64Parts2:
      return ClusterTile::k64x64Parts2;
    case HalfGemmKind::kCluster128x96Parts2:
      return ClusterTile::k128x96Parts2;
    case HalfGemmKind::kCluster128x96Pair:
      return ClusterTile::k128x96Pair;
    case HalfGemmKind::kCluster128x144Pair:
      return ClusterTile::k128x144Pair;
    default:
      return std::nullopt;
  }
}

ClusterGemmArgs MakeClusterArgs(const GemmShape& shape) {
  ClusterGemmArgs args;
  args.input_dtype = args.output_dtype = shape.dtype;
  args.rows = shape.rows;
  args.n = shape.n;
  args.k = shape.k;
  args.epilogue = shape.epilogue;
  return args;
}

Status RunClusterGemm(const GemmArgs& args, ClusterTile tile, const LaunchContext& context) {
  ClusterGemmArgs product = MakeClusterArgs(args.shape);
  product.x = args.x;
  product.w = args.w;
  product.bias = args.bias;
  if (args.shape.residual) product.residual = args.residual;
  product.output = args.output;
  return LaunchClusterGemm(product, tile, context);
}

// What a kind of CUTLASS computes at a time, and how much longer its tiles take for their size.
struct TileShape {
  int64_t rows, columns;
  double weight;
};

TileShape TileOf(HalfGemmKind kind) {
  switch (kind) {
    case HalfGemmKind::kHopper128x192:
    case HalfGemmKind::kHopperOne128x192:
      return {128, 192, 1.0};
    case HalfGemmKind::kHopper128:
      return {128, 128, 1.03};
    case HalfGemmKind::kHopper64x192:
      return {64, 192, 1.07};
    case HalfGemmKind::kHopper64x96:
      return {64, 96, 1.0};
    case HalfGemmKind::kHopper64:
      return {64, 64, 1.0};
    default:
      return {1, 1, 1.0};
  }
}

#ifdef FT_WITH_CUTLASS
// CUTLASS's kernels of one epilogue, by kind; null: none.
using Launchers = Launcher[kNumHalfGemmKinds];

template <DataType kDtype>
Launcher FindHopperLauncher(const GemmShape& shape, HalfGemmKind kind) {
  using Hopper = HopperHalf<kDtype>;
  constexpr Launchers kBias = {nullptr,
                               Hopper::Bias128x192,
                               Hopper::Bias128,
                               nullptr,
                               Hopper::BiasOne128x192,
                               Hopper::Activated64x96,
                               Hopper::Activated64};
  constexpr Launchers kGelu = {nullptr,
                               Hopper::Gelu128x192,
                               nullptr,
                               nullptr,
                               Hopper::GeluOne128x192,
                               Hopper::Activated64x96,
                               Hopper::Activated64};
  constexpr Launchers kResidual = {
      nullptr, Hopper::Residual128x192, nullptr,           Hopper::Residual64x192,
      nullptr, Hopper::Residual64x96,   Hopper::Residual64};
  const int index = static_cast<int>(kind);
  if (shape.epilogue == GemmEpilogue::kBias) {
    return shape.residual ? kResidual[index] : kBias[index];
  }
  return IsGelu(shape.epilogue) && !shape.residual ? kGelu[index] : nullptr;
}
#endif

// The kernel of CUTLASS for what `shape` has but sizes, or null.
Launcher FindLauncher(const GemmShape& shape, HalfGemmKind kind) {
#ifdef FT_WITH_CUTLASS
  if (shape.dtype == DataType::kFloat16) {
    return FindHopperLauncher<DataType::kFloat16>(shape, kind);
  }
  if (shape.dtype == DataType::kBFloat16) {
    return FindHopperLauncher<DataType::kBFloat16>(shape, kind);
  }
#endif
  return nullptr;  // or built for no architecture that could run one
}

// What multiprocessors can have one each of: blocks by clusters, else tiles.
int64_t Tiles(const GemmShape& shape, HalfGemmKind kind) {
  if (const auto cluster = ClusterTileOf(kind)) return ClusterBlocks(*cluster, shape.rows, shape.n);
  const TileShape tile = TileOf(kind);
  return (shape.rows + tile.rows - 1) / tile.rows * ((shape.n + tile.columns - 1) / tile.columns);
}

}  // namespace

const char* Name(HalfGemmKind kind) {
  switch (kind) {
    case HalfGemmKind::kCublasLt:
      return "cuBLASLt";
    case HalfGemmKind::kHopper128x192:
      return "wgmma 128x192";
    case HalfGemmKind::kHopper128:
      return "wgmma 128x128";
    case HalfGemmKind::kHopper64x192:
      return "wgmma 64x192";
    case HalfGemmKind::kHopperOne128x192:
      return "wgmma one 128x192";
    case HalfGemmKind::kHopper64x96:
      return "wgmma 64x96";
    case HalfGemmKind::kHopper64:
      return "wgmma 64x64";
    case HalfGemmKind::kCluster64x64Parts4:
    case HalfGemmKind::kCluster64x64Parts2:
    case HalfGemmKind::kCluster128x96Parts2:
    case HalfGemmKind::kCluster128x96Pair:
    case HalfGemmKind::kCluster128x144Pair:
      return Name(*ClusterTileOf(kind));
  }
  return "unknown";
}

bool HalfGemmSupported(const GemmShape& shape, HalfGemmKind kind, const LaunchContext& context) {
  if (kind == HalfGemmKind::kCublasLt) return CublasLtHas(shape.epilogue);
  if (const auto tile = ClusterTileOf(kind)) {
    return ClusterGemmSupported(MakeClusterArgs(shape), shape.residual, *tile, context);
  }
  // Tensor copies move 16 bytes of a row at least.
  return FindLauncher(shape, kind) != nullptr && context.compute_capability == 90 &&
         shape.k % 8 == 0 && shape.n % 8 == 0;
}

// As an H200 measured BERT-base's products (benchmarks/gpu_profile.md): small tiles while each
// multiprocessor has one at most, and of a long k parts; then those that leave few multiprocessors
// idle in the last round, and cuBLASLt, which has tiles of more sizes, where too many are.
HalfGemmKind SelectHalfGemm(const GemmShape& shape, const LaunchContext& context) {
  constexpr OneRoundKind<HalfGemmKind> kOneRound[] = {
      {HalfGemmKind::kCluster64x64Parts4, 0, 0, kMaxUseByFour},
      {HalfGemmKind::kCluster64x64Parts2, kLongK, 0, 1},
      {HalfGemmKind::kHopper64, 0, 0, 1},
      {HalfGemmKind::kCluster128x96Parts2, kLongK, 0, 1},
      {HalfGemmKind::kHopper64x96, 0, 0, 1},
      {HalfGemmKind::kCluster128x96Pair, 0, 0.7, 1},
      {HalfGemmKind::kCluster128x144Pair, 0, 0.7, 1}};
  constexpr double kMinUse = 0.75;
  const int64_t multiprocessors = context.num_multiprocessors;
  const auto one_round = FindOneRound(
      kOneRound, shape.k, multiprocessors,
      [&](HalfGemmKind kind) { return HalfGemmSupported(shape, kind, context); },
      [&](HalfGemmKind kind) { return Tiles(shape, kind); });
  if (one_round.has_value()) return *one_round;
  HalfGemmKind best = HalfGemmKind::kCublasLt;
  double best_time = 0, best_use = 0;
  for (const HalfGemmKind kind : {HalfGemmKind::kHopperOne128x192, HalfGemmKind::kHopper128x192,
                                  HalfGemmKind::kHopper128, HalfGemmKind::kHopper64x192}) {
    if (!HalfGemmSupported(shape, kind, context)) continue;
    const int64_t tiles = Tiles(shape, kind);
    const int64_t rounds = (tiles + multiprocessors - 1) / multiprocessors;
    if (kind == HalfGemmKind::kHopperOne128x192 && rounds > 1) continue;
    const TileShape tile = TileOf(kind);
    const double time = static_cast<double>(rounds * tile.rows * tile.columns) * tile.weight;
    if (best == HalfGemmKind::kCublasLt || time < best_time) {
      best = kind;
      best_time = time;
      best_use = static_cast<double>(tiles) / static_cast<double>(rounds * multiprocessors);
    }
  }
  return best_use < kMinUse && CublasLtHas(shape.epilogue) ? HalfGemmKind::kCublasLt : best;
}

Status RunHalfGemm(const GemmArgs& args, HalfGemmKind kind, Gemm* gemm,
                   const LaunchContext& context) {
  if (kind == HalfGemmKind::kCublasLt) return gemm->Run(args, context.stream);
  if (args.shape.rows == 0) return OkStatus();
  if (!HalfGemmSupported(args.shape, kind, context)) {
    return Internal("a product of ", Name(args.shape.dtype), " ", args.shape.rows, "x",
                    args.shape.k, "x", args.shape.n, " was given to the ", Name(kind), " kernel");
  }
  if (const auto tile = ClusterTileOf(kind)) return RunClusterGemm(args, *tile, context);
  return FindLauncher(args.shape, kind)(args, context);
}

}  // namespace cuda
}  // namespace ft
