#include "tf_ops/cuda/gemm/cluster/cluster_gemm.h"

#include "tf_ops/cuda/gemm/cluster/hopper.h"

namespace ft {
namespace cuda {
namespace {

struct TileShape {
  const char* name;
  int64_t rows, columns;
  int parts, tiles;  // of a cluster: blocks are parts * tiles
};

TileShape ShapeOf(ClusterTile tile) {
  switch (tile) {
    case ClusterTile::k64x64Parts4:
      return {"cluster 64x64, k in 4", 64, 64, 4, 1};
    case ClusterTile::k64x64Parts2:
      return {"cluster 64x64, k in 2", 64, 64, 2, 1};
    case ClusterTile::k128x96Parts2:
      return {"cluster 128x96, k in 2", 128, 96, 2, 1};
    case ClusterTile::k64x96Pair:
      return {"cluster 2 of 64x96", 64, 96, 1, 2};
    case ClusterTile::k128x96Pair:
      return {"cluster 2 of 128x96", 128, 96, 1, 2};
    case ClusterTile::k128x144Pair:
      return {"cluster 2 of 128x144", 128, 144, 1, 2};
  }
  return {"unknown", 1, 1, 1, 1};
}

// The kernel of a tile for what `args` has but sizes and pointers, or null.
ClusterLauncher FindLauncher(const ClusterGemmArgs& args, bool has_residual, ClusterTile tile) {
#ifdef FT_WITH_CUTLASS
  const bool is_half = args.output_dtype == DataType::kFloat16;
  if (!is_half && args.output_dtype != DataType::kBFloat16) return nullptr;
  if (args.input_dtype == args.output_dtype) {
    if (args.epilogue == GemmEpilogue::kBias) {
      if (!has_residual) {
        return is_half ? HopperClusterFloat16Bias(tile) : HopperClusterBFloat16Bias(tile);
      }
      return is_half ? HopperClusterFloat16Residual(tile) : HopperClusterBFloat16Residual(tile);
    }
    if (!IsGelu(args.epilogue) || has_residual) return nullptr;
    return is_half ? HopperClusterFloat16Gelu(tile) : HopperClusterBFloat16Gelu(tile);
  }
  if (args.epilogue != GemmEpilogue::kBias || has_residual) return nullptr;
  if (args.input_dtype == DataType::kFloat8) {
    return is_half ? HopperClusterFloat8Half(tile) : HopperClusterFloat8BFloat(tile);
  }
  if (args.input_dtype == DataType::kInt8) {
    return is_half ? HopperClusterInt8Half(tile) : HopperClusterInt8BFloat(tile);
  }
#endif
  return nullptr;  // or built for no architecture that could run one
}

}  // namespace

const char* Name(ClusterTile tile) { return ShapeOf(tile).name; }

int64_t ClusterBlocks(ClusterTile tile, int64_t rows, int64_t n) {
  const TileShape shape = ShapeOf(tile);
  const int64_t cluster_rows = shape.rows * shape.tiles;
  return (rows + cluster_rows - 1) / cluster_rows * ((n + shape.columns - 1) / shape.columns) *
         shape.parts * shape.tiles;
}

bool ClusterGemmSupported(const ClusterGemmArgs& args, bool has_residual, ClusterTile tile,
                          const LaunchContext& context) {
  // Copies move 16 bytes of a row at least.
  return FindLauncher(args, has_residual, tile) != nullptr && context.compute_capability == 90 &&
         args.k * SizeOf(args.input_dtype) % 16 == 0 &&
         args.n * SizeOf(args.output_dtype) % 16 == 0;
}

Status LaunchClusterGemm(const ClusterGemmArgs& args, ClusterTile tile,
                         const LaunchContext& context) {
  const bool has_residual = args.residual != nullptr;
  if (!ClusterGemmSupported(args, has_residual, tile, context)) {
    return Internal("a product of ", Name(args.input_dtype), " ", args.rows, "x", args.k, "x",
                    args.n, " to ", Name(args.output_dtype), " was given to the ", Name(tile),
                    " kernel");
  }
  return FindLauncher(args, has_residual, tile)(args, context);
}

}  // namespace cuda
}  // namespace ft
