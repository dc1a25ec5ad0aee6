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
#include <initializer_list>
#include <string>

#include "tf_ops/core/status.h"

namespace ft {

// kUint8 is internal to backends, and of prepared weights (prepared_tensor.h); kFloat8 to backends.
// kFloat8 is float8_e4m3fn: 4 bits of exponent, 3 of mantissa, no infinities, at most 448.
enum class DataType { kFloat32, kFloat16, kBFloat16, kInt32, kInt8, kInt64, kUint8, kFloat8 };

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
    case DataType::kUint8:
    case DataType::kFloat8:
      return 1;
    case DataType::kInt64:
      return 8;
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
    case DataType::kInt64:
      return "int64";
    case DataType::kUint8:
      return "uint8";
    case DataType::kFloat8:
      return "float8_e4m3fn";
  }
  return "unknown";
}

// Activation of the feed-forward network. kGeluTanh is google-research BERT's gelu():
// x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).
enum class Activation { kGeluTanh, kGeluErf, kRelu };

// The sizes of a tensor, in place: a layer has sixteen of them, and a vector each would be sixteen
// allocations in every call. Of a tensor of more than kMaxRank dimensions, which no input may be,
// the rank is right and the sizes are the first ones.
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) push_back(size);
  }

  void push_back(int64_t size) {
    if (rank_ < kMaxRank) sizes_[rank_] = size;
    ++rank_;
  }
  int size() const { return rank_; }
  int64_t operator[](int i) const { return sizes_[i]; }
  int64_t& operator[](int i) { return sizes_[i]; }

  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int i = 0; i < rank_ && i < kMaxRank; ++i) {
      if (sizes_[i] != other.sizes_[i]) return false;
    }
    return true;
  }
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  int rank_ = 0;
  int64_t sizes_[kMaxRank] = {};
};

// Elements of a tensor whose memory exists, so that their number fits.
inline int64_t NumElements(const Shape& shape) {
  int64_t count = 1;
  for (int i = 0; i < shape.size() && i < Shape::kMaxRank; ++i) count *= shape[i];
  return count;
}

// "[8,128,768]".
inline std::string ShapeString(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.size() && i < Shape::kMaxRank; ++i) {
    text += (i ? "," : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() > Shape::kMaxRank ? ",...]" : "]");
}

// Tensor memory that somebody else owns. Row-major, dense.
struct TensorView {
  const void* data = nullptr;
  DataType dtype = DataType::kFloat32;
  Shape shape;
};

inline constexpr int64_t kAlignment = 256;  // of everything inside workspaces and prepared weights

inline int64_t AlignUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The first address from `address` on that is aligned to kAlignment.
inline void* AlignUp(void* address) {
  return reinterpret_cast<void*>(
      AlignUp(static_cast<int64_t>(reinterpret_cast<uintptr_t>(address)), kAlignment));
}

}  // namespace ft
