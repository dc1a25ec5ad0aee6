// The kernel of a product that needs one round of the multiprocessors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace ft {
namespace cuda {

// From here on k is long: blocks that have a part of it each are faster.
inline constexpr int64_t kLongK = 2048;

// A kernel that is the fastest where one round is enough, k is no shorter, and its tiles (blocks by
// clusters) use this part of the multiprocessors.
template <typename Kind>
struct OneRoundKind {
  Kind kind;
  int64_t min_k;
  double min_use, max_use;
};

// Clusters of four blocks do not fit on all multiprocessors.
inline constexpr double kMaxUseByFour = 0.8;

// The first that `is_supported` and fits; `count_tiles` of a kind.
template <typename Kind, size_t kCount, typename IsSupported, typename CountTiles>
std::optional<Kind> FindOneRound(const OneRoundKind<Kind> (&kinds)[kCount], int64_t k,
                                 int64_t multiprocessors, const IsSupported& is_supported,
                                 const CountTiles& count_tiles) {
  for (const OneRoundKind<Kind>& candidate : kinds) {
    if (k < candidate.min_k || !is_supported(candidate.kind)) continue;
    const double use =
        static_cast<double>(count_tiles(candidate.kind)) / static_cast<double>(multiprocessors);
    if (use >= candidate.min_use && use <= candidate.max_use) return candidate.kind;
  }
  return std::nullopt;
}

}  // namespace cuda
}  // namespace ft
