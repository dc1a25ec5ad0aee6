// Hands out aligned pieces of one block of memory.
#pragma once

#include <algorithm>

#include "tf_ops/core/types.h"

namespace ft {

// With a null base it only counts: the same code says how much memory is needed and lays it out.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  // `bytes` bytes aligned to kAlignment; null where the base is.
  template <typename P = void>
  P* Take(int64_t bytes) {
    char* const piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += AlignUp(std::max<int64_t>(bytes, 0), kAlignment);
    return reinterpret_cast<P*>(piece);
  }

  int64_t used() const { return used_; }

 private:
  char* const base_;
  int64_t used_ = 0;
};

}  // namespace ft
