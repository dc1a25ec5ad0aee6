#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

#include <optional>

#include "tf_ops/cuda/gemm/cluster/cluster_gemm.h"
#include "tf_ops/cuda/gemm/int8/few_rows.h"
#include "tf_ops/cuda/gemm/int8/hopper.h"
#include "tf_ops/cuda/gemm/int8/plain.h"
#include "tf_ops/cuda/gemm/one_round.h"

namespace ft {
namespace cuda {
namespace {

using Launcher = Status (*)(const Int8GemmArgs&, const LaunchContext&);

// Of the kinds by clusters.
std::optional<ClusterTile> ClusterTileOf(Int8GemmKind kind) {
  switch (kind) {
    case Int8GemmKind::kCluster64x64Parts4:
      return ClusterTile::k64x64Parts4;
    case Int8GemmKind::kCluster64x64Parts2:
      return ClusterTile::k64x64Parts2;
    case Int8GemmKind::kCluster64x96Pair:
      return ClusterTile::k64x96Pair;
    case Int8GemmKind::kCluster128x96Pair:
      return ClusterTile::k128x96Pair;
    case Int8GemmKind::kCluster128x144Pair:
      return ClusterTile::k128x144Pair;
    default:
      return std::nullopt;
  }
}

ClusterGemmArgs MakeClusterArgs(const Int8GemmArgs& args) {
  ClusterGemmArgs product;
  product.input_dtype = args.input_dtype;
  product.output_dtype = args.output_dtype;
  product.rows = args.rows;
  product.n = args.n;
  product.k = args.k;
  product.x = args.x;
  product.w = args.w;
  product.scale = args.scale;
  product.bias = args.bias;
  product.output = args.output;
  return product;
}

#ifdef FT_WITH_CUTLASS
// The kernels of one input type by output, tiles of 128x128, 64x128 and 64x64 each; null: none.
struct Launchers {
  Launcher rounded[3];    // of the input's type, without activation
  Launcher gelu[3];       // kGeluTanh
  Launcher gelu_erf[3];   // kGeluErf
  Launcher activated[3];  // any other activation
  Launcher half[3], bfloat[3], number[3];
};

constexpr Launchers kInt8 = {
    {LaunchHopperInt8Integer128, LaunchHopperInt8Integer64, LaunchHopperInt8IntegerFew},
    {LaunchHopperInt8Gelu128, LaunchHopperInt8Activated64, LaunchHopperInt8IntegerFew},
    {LaunchHopperInt8GeluErf128, LaunchHopperInt8Activated64, LaunchHopperInt8IntegerFew},
    {nullptr, LaunchHopperInt8Activated64, LaunchHopperInt8IntegerFew},
    {LaunchHopperInt8Half128, LaunchHopperInt8Half64, LaunchHopperInt8HalfFew},
    {LaunchHopperInt8BFloat128, LaunchHopperInt8BFloat64, LaunchHopperInt8BFloatFew},
    {nullptr, LaunchHopperInt8Float64, nullptr}};

constexpr Launchers kFloat8 = {
    {nullptr, LaunchHopperFloat8Activated64, LaunchHopperFloat8ActivatedFew},
    {LaunchHopperFloat8Gelu128, LaunchHopperFloat8Activated64, LaunchHopperFloat8ActivatedFew},
    {LaunchHopperFloat8GeluErf128, LaunchHopperFloat8Activated64, LaunchHopperFloat8ActivatedFew},
    {nullptr, LaunchHopperFloat8Activated64, LaunchHopperFloat8ActivatedFew},
    {LaunchHopperFloat8Half128, LaunchHopperFloat8Half64, LaunchHopperFloat8HalfFew},
    {LaunchHopperFloat8BFloat128, LaunchHopperFloat8BFloat64, LaunchHopperFloat8BFloatFew},
    {nullptr, LaunchHopperFloat8Float64, nullptr}};

Launcher FindHopperLauncher(const Int8GemmArgs& args, int tile) {
  const Launchers& launchers = args.input_dtype == DataType::kFloat8 ? kFloat8 : kInt8;
  if (args.output_dtype == args.input_dtype) {
    switch (args.activation) {
      case Int8Activation::kNone:
        return launchers.rounded[tile];
      case Int8Activation::kGeluTanh:
        return launchers.gelu[tile];
      case Int8Activation::kGeluErf:
        return launchers.gelu_erf[tile];
      default:
        return launchers.activated[tile];
    }
  }
  switch (args.output_dtype) {
    case DataType::kFloat16:
      return launchers.half[tile];
    case DataType::kBFloat16:
      return launchers.bfloat[tile];
    default:
      return launchers.number[tile];
  }
}
#endif

// The kernel of a kind, but of those by clusters, for what `args` has but pointers, or null.
Launcher FindLauncher(const Int8GemmArgs& args, Int8GemmKind kind) {
  if (kind == Int8GemmKind::kPlain) return LaunchPlainInt8Gemm;
  if (kind == Int8GemmKind::kFewRows) return LaunchFewRowsInt8Gemm;
#ifdef FT_WITH_CUTLASS
  const int tile = static_cast<int>(kind) - static_cast<int>(Int8GemmKind::kHopper128);
  return FindHopperLauncher(args, tile);
#else
  return nullptr;  // built for no architecture that could run one
#endif
}

// Tiles of rows x columns of a product.
int64_t Tiles(const Int8GemmArgs& args, int64_t rows, int64_t columns) {
  return (args.rows + rows - 1) / rows * ((args.n + columns - 1) / columns);
}

// What multiprocessors can have one each of: blocks by clusters, else tiles.
int64_t Tiles(const Int8GemmArgs& args, Int8GemmKind kind) {
  if (const auto cluster = ClusterTileOf(kind)) return ClusterBlocks(*cluster, args.rows, args.n);
  return kind == Int8GemmKind::kHopperFew ? Tiles(args, 64, 64) : Tiles(args, 64, 128);
}

// As H100s and an H200 measured BERT's products (cuda_test bench_int8, benchmarks/gpu_profile.md):
// small tiles while all multiprocessors do not have one each, and of a long k parts; then those of
// 64 rows for few columns, unless rows are many.
Int8GemmKind Prefer(const Int8GemmArgs& args, const LaunchContext& context) {
  constexpr OneRoundKind<Int8GemmKind> kOneRound[] = {
      {Int8GemmKind::kCluster64x64Parts4, 0, 0, kMaxUseByFour},
      {Int8GemmKind::kCluster64x64Parts2, kLongK, 0, 1},
      {Int8GemmKind::kHopperFew, 0, 0, 1},
      {Int8GemmKind::kCluster64x96Pair, 0, 0, 1},
      {Int8GemmKind::kCluster128x96Pair, 0, 0.7, 1},
      {Int8GemmKind::kCluster128x144Pair, 0, 0.7, 1},
      {Int8GemmKind::kHopper64, 0, 0, 1}};
  constexpr int64_t kFewColumns = 1024, kManyWaves = 8;
  const int64_t multiprocessors = context.num_multiprocessors;
  const auto one_round = FindOneRound(
      kOneRound, args.k, multiprocessors,
      [&](Int8GemmKind kind) { return Int8GemmSupported(args, kind, context); },
      [&](Int8GemmKind kind) { return Tiles(args, kind); });
  if (one_round.has_value()) return *one_round;
  const bool is_small =
      args.n <= kFewColumns && Tiles(args, 64, 128) <= kManyWaves * multiprocessors;
  return is_small ? Int8GemmKind::kHopper64 : Int8GemmKind::kHopper128;
}

}  // namespace

const char* Name(Int8GemmKind kind) {
  switch (kind) {
    case Int8GemmKind::kPlain:
      return "plain";
    case Int8GemmKind::kHopper128:
      return "wgmma 128x128";
    case Int8GemmKind::kHopper64:
      return "wgmma 64x128";
    case Int8GemmKind::kHopperFew:
      return "wgmma 64x64";
    case Int8GemmKind::kFewRows:
      return "few rows";
    case Int8GemmKind::kCluster64x64Parts4:
    case Int8GemmKind::kCluster64x64Parts2:
    case Int8GemmKind::kCluster64x96Pair:
    case Int8GemmKind::kCluster128x96Pair:
    case Int8GemmKind::kCluster128x144Pair:
      return Name(*ClusterTileOf(kind));
  }
  return "unknown";
}

bool Int8GemmSupported(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
  if (args.input_dtype == DataType::kFloat8 && context.compute_capability < 89) return false;
  if (kind == Int8GemmKind::kFewRows) return FewRowsInt8GemmSupported(args, context);
  if (args.num_partials > 0) return false;
  if (kind == Int8GemmKind::kPlain) return true;
  if (const auto tile = ClusterTileOf(kind)) {
    return ClusterGemmSupported(MakeClusterArgs(args), false, *tile, context);
  }
  // Tensor copies move 16 bytes of a row at least.
  return FindLauncher(args, kind) != nullptr && context.compute_capability == 90 &&
         args.k % 16 == 0 && args.n * SizeOf(args.output_dtype) % 16 == 0;
}

Int8GemmKind SelectInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context) {
  for (const Int8GemmKind kind :
       {Prefer(args, context), Int8GemmKind::kHopper128, Int8GemmKind::kHopper64}) {
    if (Int8GemmSupported(args, kind, context)) return kind;
  }
  return Int8GemmKind::kPlain;
}

Status LaunchInt8Gemm(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (!Int8GemmSupported(args, kind, context)) {
    return Internal("a product of ", Name(args.input_dtype), " ", args.rows, "x", args.k, "x",
                    args.n, " to ", Name(args.output_dtype), " was given to the ", Name(kind),
                    " kernel");
  }
  if (const auto tile = ClusterTileOf(kind)) {
    return LaunchClusterGemm(MakeClusterArgs(args), *tile, context);
  }
  return FindLauncher(args, kind)(args, context);
}

}  // namespace cuda
}  // namespace ft
