// The CPU as core/backend.h sees it.
#pragma once

#include "tf_ops/core/backend.h"

namespace ft::cpu {

const Backend& CpuBackend();

}  // namespace ft::cpu
