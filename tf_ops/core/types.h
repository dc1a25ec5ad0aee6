// Types that both backends share.
//
// Shape letters, the same everywhere in this repository:
//   B batch, S padded (longest) sequence length, T tokens that are computed (B*S, or the sum of the
//   sequence lengths when padding is removed), N heads, D size per head, H = N*D hidden size,
//   I inner size of the feed-forward network, L layers.
// Sizes are int64_t elements unless the name says _bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tf_ops/core/status.h"

namespace ft {

enum class DataType { kFloat32, kFloat16, kBFloat16, kInt32, kInt8 };

// Bytes of one element.
inline int64_t SizeOf(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
    case DataType::kInt32:
      return 4;
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 2;
    case DataType::kInt8:
      return 1;
  }
  return 0;
}

inline const char* Name(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return "float32";
    case DataType::kFloat16:
      return "float16";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kInt32:
      return "int32";
    case DataType::kInt8:
      return "int8";
  }
  return "unknown";
}

// Activation of the feed-forward network. kGeluTanh is google-research BERT's gelu():
// x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).
enum class Activation { kGeluTanh, kGeluErf, kRelu };

// Tensor memory that somebody else owns. Row-major, dense.
struct TensorView {
  const void* data = nullptr;
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;
};

// "[8,128,768]".
inline std::string ShapeString(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

inline constexpr int64_t kAlignment = 256;  // of everything inside workspaces and packed weights

inline int64_t AlignUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace ft
