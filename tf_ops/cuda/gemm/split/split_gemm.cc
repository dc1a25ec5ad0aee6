#include "tf_ops/cuda/gemm/split/split_gemm.h"

#include <algorithm>

#include "tf_ops/cuda/gemm/split/hopper.h"

namespace ft {
namespace cuda {
namespace {

using Launcher = Status (*)(const SplitGemmArgs&, const LaunchContext&);

// The kernel of a kind, or null.
Launcher FindLauncher(SplitGemmKind kind) {
#ifdef FT_WITH_CUTLASS
  constexpr Launcher kLaunchers[] = {LaunchHopperSplit128, LaunchHopperSplit64};
  return kLaunchers[static_cast<int>(kind)];
#else
  return nullptr;  // built for no architecture that could run one
#endif
}

}  // namespace

const char* Name(SplitGemmKind kind) {
  switch (kind) {
    case SplitGemmKind::kHopper128:
      return "split wgmma 128x128";
    case SplitGemmKind::kHopper64:
      return "split wgmma 128x64";
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
  // Tensor copies move 16 bytes of a row at least.
  return FindLauncher(kind) != nullptr && context.compute_capability == kSplitCapability && args.n % 4 == 0 &&
         args.output_pitch % 4 == 0;
}

SplitGemmKind SelectSplitGemm(const SplitGemmArgs& args, const LaunchContext& context) {
  // Small tiles while large ones do not give all multiprocessors one each.
  const int64_t tiles = (args.rows + 127) / 128 * ((args.n + 127) / 128);
  return tiles < context.num_multiprocessors ? SplitGemmKind::kHopper64 : SplitGemmKind::kHopper128;
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
