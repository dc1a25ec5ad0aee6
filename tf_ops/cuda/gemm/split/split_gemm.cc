#include "tf_ops/cuda/gemm/split/split_gemm.h"

#include <algorithm>

#include "tf_ops/cuda/gemm/few_rows.h"
#include "tf_ops/cuda/gemm/split/hopper.h"
#include "tf_ops/cuda/norm/layer_norm.h"

namespace ft {
namespace cuda {
namespace {

using Launcher = Status (*)(const SplitGemmArgs&, const LaunchContext&);

FewRowsGemmArgs MakeFewRowsArgs(const SplitGemmArgs& args) {
  FewRowsGemmArgs few;
  few.dtype = DataType::kFloat32;
  few.rows = args.rows;
  few.n = args.n;
  few.k = args.k;
  few.x = args.x;
  few.w = args.w;
  few.x_scale = args.x_scale;
  few.w_scale = args.w_scale;
  few.bias = args.bias;
  few.num_splits = args.num_splits;
  if (args.num_splits > 1) {
    few.partials = args.output;
  } else {
    few.output = args.output;
    few.output_pitch = args.output_pitch;
  }
  return few;
}

Status LaunchFewRows(const SplitGemmArgs& args, const LaunchContext& context) {
  return LaunchFewRowsGemm(MakeFewRowsArgs(args), context);
}

// The kernel of a kind, or null.
Launcher FindLauncher(SplitGemmKind kind) {
#ifdef FT_WITH_CUTLASS
  constexpr Launcher kLaunchers[] = {LaunchHopperSplit128, LaunchHopperSplit64, LaunchFewRows};
  return kLaunchers[static_cast<int>(kind)];
#else
  return nullptr;  // built for no architecture that could run all
#endif
}

int64_t Tiles(const SplitGemmArgs& args, int64_t columns) {
  return (args.rows + 127) / 128 * ((args.n + columns - 1) / columns) * args.num_splits;
}

}  // namespace

const char* Name(SplitGemmKind kind) {
  switch (kind) {
    case SplitGemmKind::kHopper128:
      return "split wgmma 128x128";
    case SplitGemmKind::kHopper64:
      return "split wgmma 128x64";
    case SplitGemmKind::kFewRows:
      return "split few rows";
  }
  return "unknown";
}

bool SplitSizesSupported(int64_t hidden_size, int64_t inner_size) {
#ifdef FT_WITH_CUTLASS
  // Vectors of 16 bytes; a row of activations has to fit into a block's shared memory.
  constexpr int64_t kMaxRow = 48 << 10;
  return hidden_size % 4 == 0 && inner_size % 4 == 0 &&
         std::max(hidden_size, inner_size) <= kMaxRow;
#else
  return false;  // built for no architecture that has the kernels
#endif
}

bool SplitGemmSupported(const SplitGemmArgs& args, SplitGemmKind kind,
                        const LaunchContext& context) {
  if (FindLauncher(kind) == nullptr || context.compute_capability != kSplitCapability ||
      SplitPitch(args.k) / kSplitGroup % args.num_splits != 0) {
    return false;
  }
  if (kind == SplitGemmKind::kFewRows) return FewRowsGemmSupported(MakeFewRowsArgs(args), context);
  // Tensor copies move 16 bytes of a row at least.
  return args.n % 4 == 0 && args.output_pitch % 4 == 0;
}

int SplitGemmSplits(int64_t rows, int64_t n, int64_t k, const LaunchContext& context) {
  constexpr int64_t kMinGroups = 4;  // a part of fewer is not worth its sums
  SplitGemmArgs args;
  args.rows = rows;
  args.n = n;
  const int64_t tiles = Tiles(args, 64), groups = SplitPitch(k) / kSplitGroup;
  for (int splits = kMaxNormPartials; splits > 1; --splits) {
    if (groups % splits == 0 && groups / splits >= kMinGroups &&
        tiles * splits <= context.num_multiprocessors) {
      return splits;
    }
  }
  return 1;
}

SplitGemmKind SelectSplitGemm(const SplitGemmArgs& args, int64_t few_rows,
                              const LaunchContext& context) {
  if (args.rows <= (few_rows < 0 ? kMaxSplitFewRows : few_rows) &&
      SplitGemmSupported(args, SplitGemmKind::kFewRows, context)) {
    return SplitGemmKind::kFewRows;
  }
  // A small tile takes about 5/8 of a large one's time; a multiprocessor computes one at a time.
  const auto rounds = [&](int64_t columns) {
    return (Tiles(args, columns) + context.num_multiprocessors - 1) / context.num_multiprocessors;
  };
  return rounds(64) * 5 <= rounds(128) * 8 ? SplitGemmKind::kHopper64 : SplitGemmKind::kHopper128;
}

Status LaunchSplitGemm(const SplitGemmArgs& args, SplitGemmKind kind,
                       const LaunchContext& context) {
  if (args.rows == 0) return OkStatus();
  if (!SplitGemmSupported(args, kind, context)) {
    return Internal("a split product of ", args.rows, "x", args.k, "x", args.n,
                    " was given to the ", Name(kind), " kernel");
  }
  return FindLauncher(kind)(args, context);
}

}  // namespace cuda
}  // namespace ft
