// The types and devices that every op has kernels for.
#pragma once

#include "tensorflow/core/framework/op_kernel.h"

// Calls FT_REGISTER_CPU(T) and, with CUDA, FT_REGISTER_GPU(T), which the file defines, for each
// type.
#ifdef FT_WITH_CUDA
#define FT_REGISTER_ON_GPU(T) FT_REGISTER_GPU(T)
#else
#define FT_REGISTER_ON_GPU(T) static_assert(true, "")
#endif
#define FT_REGISTER_TYPE(T) \
  FT_REGISTER_CPU(T);       \
  FT_REGISTER_ON_GPU(T)
#define FT_REGISTER_ALL_TYPES    \
  FT_REGISTER_TYPE(float);       \
  FT_REGISTER_TYPE(Eigen::half); \
  FT_REGISTER_TYPE(Eigen::bfloat16)
