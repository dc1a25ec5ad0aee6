#include "tf_ops/core/scratch.h"

#include <algorithm>

namespace ft {

Status Scratch::Take(int64_t bytes, bool shared, const ExecutionContext& context, Turn* turn) {
  if (!shared || bytes > kMaxBytes) return context.allocator->Allocate(bytes, &turn->memory_);
  turn->lock_ = std::unique_lock<std::mutex>(mutex_);
  if (bytes > bytes_) {
    // With room to grow: every new address means new graphs.
    const int64_t more = std::min(kMaxBytes, AlignUp(bytes + bytes / 4, int64_t{1} << 20));
    memory_.reset();
    bytes_ = 0;
    FT_RETURN_IF_ERROR(context.allocator->Allocate(more, &memory_));
    bytes_ = more;
  }
  turn->memory_ = memory_;
  return OkStatus();
}

}  // namespace ft
