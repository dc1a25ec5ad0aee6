#include "tf_ops/cuda/gemm/int8/int8_gemm.h"

#include "tf_ops/cuda/gemm/int8/hopper.h"
#include "tf_ops/cuda/gemm/int8/plain.h"

namespace ft {
namespace cuda {
namespace {

#ifdef FT_WITH_CUTLASS
constexpr bool kHasHopperKernels = true;
#else
constexpr bool kHasHopperKernels = false;  // built for no architecture that could run them
#endif

// The microseconds of a product by kernels with tiles of rows x columns: waves of tiles over the
// multiprocessors, each of a fixed time and one for each of k. Fitted to an H100's times of BERT's
// products (cuda_test bench_int8).
struct TileTime {
  Int8GemmKind kind;
  int64_t rows, columns;
  double launch, tile, of_k;

  double Of(const Int8GemmArgs& args, const LaunchContext& context) const {
    const int64_t tiles = (args.rows + rows - 1) / rows * ((args.n + columns - 1) / columns);
    const int64_t waves = (tiles + context.num_multiprocessors - 1) / context.num_multiprocessors;
    return launch + static_cast<double>(waves) * (tile + of_k * static_cast<double>(args.k));
  }
};
constexpr TileTime kTileTimes[] = {{Int8GemmKind::kHopperFew, 64, 64, 0.5, 1.2, 0.00174},
                                   {Int8GemmKind::kHopper64, 64, 128, 1.5, 0.9, 0.0018},
                                   {Int8GemmKind::kHopper128, 128, 128, 2.3, 0.1, 0.0033}};

#ifdef FT_WITH_CUTLASS
Status LaunchHopper(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
  using Launcher = Status (*)(const Int8GemmArgs&, const LaunchContext&);
  constexpr Launcher kIntegers[] = {LaunchHopperInt8Integer128, LaunchHopperInt8Integer64,
                                    LaunchHopperInt8IntegerFew};
  constexpr Launcher kHalfs[] = {LaunchHopperInt8Half128, LaunchHopperInt8Half64,
                                 LaunchHopperInt8HalfFew};
  constexpr Launcher kBFloats[] = {LaunchHopperInt8BFloat128, LaunchHopperInt8BFloat64,
                                   LaunchHopperInt8BFloatFew};
  const int tile = static_cast<int>(kind) - static_cast<int>(Int8GemmKind::kHopper128);
  switch (args.output_dtype) {
    case DataType::kInt8:
      return kIntegers[tile](args, context);
    case DataType::kFloat16:
      return kHalfs[tile](args, context);
    case DataType::kBFloat16:
      return kBFloats[tile](args, context);
    default:
      return LaunchHopperInt8Float64(args, context);
  }
}
#else
Status LaunchHopper(const Int8GemmArgs&, Int8GemmKind kind, const LaunchContext&) {
  return Internal("the library has no ", Name(kind), " kernel for int8 products");
}
#endif

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
  }
  return "unknown";
}

bool Int8GemmSupported(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
  if (kind == Int8GemmKind::kPlain) return true;
  // Tensor copies move 16 bytes of a row at least.
  return kHasHopperKernels && context.compute_capability == 90 && args.k % 16 == 0 &&
         args.n * SizeOf(args.output_dtype) % 16 == 0 &&
         (args.output_dtype != DataType::kFloat32 || kind == Int8GemmKind::kHopper64);
}

Int8GemmKind SelectInt8Gemm(const Int8GemmArgs& args, const LaunchContext& context) {
  if (!Int8GemmSupported(args, Int8GemmKind::kHopper64, context)) return Int8GemmKind::kPlain;
  if (args.output_dtype == DataType::kFloat32) return Int8GemmKind::kHopper64;
  const TileTime* best = &kTileTimes[0];
  for (const TileTime& tiles : kTileTimes) {
    if (tiles.Of(args, context) < best->Of(args, context)) best = &tiles;
  }
  return best->kind;
}

Status LaunchInt8Gemm(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (!Int8GemmSupported(args, kind, context)) {
    return Internal("an int8 product of ", args.rows, "x", args.k, "x", args.n, " to ",
                    Name(args.output_dtype), " was given to the ", Name(kind), " kernel");
  }
  return kind == Int8GemmKind::kPlain ? LaunchPlainInt8Gemm(args, context)
                                      : LaunchHopper(args, kind, context);
}

}  // namespace cuda
}  // namespace ft
