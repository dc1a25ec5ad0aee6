#include "torch_ops/masks.h"

#include <algorithm>
#include <cstring>

namespace ft::torch_op {
namespace {

// Core adds -10000 for a key that is not seen; whatever is added here beyond leaves it as little.
constexpr float kForbidden = -10000.0f;

// 1 for each element of a mask that lets a query see a key, else 0.
Status ReadAllowed(const Tensor& mask, std::vector<uint8_t>* allowed) {
  const int64_t count = mask.numel();
  allowed->resize(count);
  if (mask.scalar_type() == ScalarType::Bool) {
    if (count > 0) std::memcpy(allowed->data(), mask.const_data_ptr(), count);
    return OkStatus();
  }
  const float* const added = static_cast<const float*>(mask.const_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    (*allowed)[i] = added[i] == 0.0f;
    if (added[i] != 0.0f && !(added[i] <= kForbidden)) {
      return InvalidArgument("attention_mask holds ", added[i], ", expected 0 or at most ",
                             kForbidden, ": a bias on the scores is not supported");
    }
  }
  return OkStatus();
}

// Whether all S queries of each sequence see the same keys, by allowed [B,S,S].
bool SameForAllQueries(const std::vector<uint8_t>& allowed, int64_t batch_size, int64_t seq_len) {
  for (int64_t b = 0; b < batch_size; ++b) {
    const uint8_t* const first = allowed.data() + b * seq_len * seq_len;
    for (int64_t query = 1; query < seq_len; ++query) {
      if (std::memcmp(first, first + query * seq_len, seq_len) != 0) return false;
    }
  }
  return true;
}

// Writes core's mask, 1 or 0 of `dtype`, for each of allowed's elements, `repeat` times each row of
// seq_len.
void WriteMask(const std::vector<uint8_t>& allowed, int64_t seq_len, int64_t repeat, DataType dtype,
               void* mask) {
  const int64_t size = SizeOf(dtype);
  // float32, float16 and bfloat16 begin with sign and exponent of 1.
  const uint32_t one = dtype == DataType::kFloat32   ? 0x3f800000u
                       : dtype == DataType::kFloat16 ? 0x3c00u
                                                     : 0x3f80u;
  const int64_t rows = static_cast<int64_t>(allowed.size()) / std::max<int64_t>(seq_len, 1);
  char* to = static_cast<char*>(mask);
  for (int64_t row = 0; row < rows; ++row) {
    const char* const begin = to;
    for (int64_t key = 0; key < seq_len; ++key, to += size) {
      const uint32_t value = allowed[row * seq_len + key] ? one : 0;
      std::memcpy(to, &value, size);
    }
    for (int64_t copy = 1; copy < repeat; ++copy, to += seq_len * size) {
      std::memcpy(to, begin, seq_len * size);
    }
  }
}

}  // namespace

Status CheckMask(const Tensor& mask, int64_t batch_size, int64_t seq_len, MaskForm* form) {
  const ScalarType type = mask.scalar_type();
  if (type != ScalarType::Bool && type != ScalarType::Float) {
    return InvalidArgument("attention_mask has dtype ", ::torch::headeronly::toString(type),
                           ", expected Bool, or Float as it is added to the scores");
  }
  Shape shape;
  for (const int64_t size : mask.sizes()) shape.push_back(size);
  form->for_all = shape == Shape{batch_size, seq_len} || shape == Shape{batch_size, 1, 1, seq_len};
  if (!form->for_all && shape != Shape{batch_size, seq_len, seq_len} &&
      shape != Shape{batch_size, 1, seq_len, seq_len}) {
    return InvalidArgument("attention_mask has shape ", ShapeString(shape), ", expected [",
                           batch_size, ",", seq_len, "], [", batch_size, ",1,1,", seq_len, "], [",
                           batch_size, ",", seq_len, ",", seq_len, "] or [", batch_size, ",1,",
                           seq_len, ",", seq_len, "] by hidden_states");
  }
  return OkStatus();
}

Status ReadAttention(const TensorView& hidden_states, const std::optional<Tensor>& sequence_length,
                     const std::optional<Tensor>& attention_mask, Allocator* allocator,
                     AttentionInputs* inputs) {
  if (sequence_length.has_value()) {
    inputs->length_tensor = Contiguous(*sequence_length);
    FT_RETURN_IF_ERROR(ViewOf("sequence_length", *inputs->length_tensor, &inputs->sequence_length));
  }
  inputs->attention_mask.dtype = hidden_states.dtype;
  if (!attention_mask.has_value()) return OkStatus();

  const int64_t batch_size = hidden_states.shape[0], seq_len = hidden_states.shape[1];
  MaskForm form;
  FT_RETURN_IF_ERROR(CheckMask(*attention_mask, batch_size, seq_len, &form));
  const bool for_all = form.for_all;
  std::vector<uint8_t> allowed;
  FT_RETURN_IF_ERROR(ReadAllowed(Contiguous(*attention_mask), &allowed));
  const int64_t queries = for_all ? 1 : seq_len;  // rows of a sequence that `allowed` has
  if (!sequence_length.has_value() &&
      (for_all || SameForAllQueries(allowed, batch_size, seq_len))) {
    bool has_holes = false;
    for (int64_t b = 0; b < batch_size; ++b) {
      const uint8_t* const keys = allowed.data() + b * queries * seq_len;
      int64_t length = seq_len;
      while (length > 0 && !keys[length - 1]) --length;
      inputs->lengths.push_back(static_cast<int32_t>(length));
      has_holes = has_holes || std::find(keys, keys + length, 0) != keys + length;
    }
    inputs->sequence_length = {inputs->lengths.data(), DataType::kInt32, {batch_size}};
    if (!has_holes) return OkStatus();
  }
  const int64_t bytes = batch_size * seq_len * seq_len * SizeOf(hidden_states.dtype);
  FT_RETURN_IF_ERROR(allocator->Allocate(bytes, &inputs->mask));
  WriteMask(allowed, seq_len, for_all ? seq_len : 1, hidden_states.dtype, inputs->mask.get());
  inputs->attention_mask = {
      inputs->mask.get(), hidden_states.dtype, {batch_size, seq_len, seq_len}};
  return OkStatus();
}

}  // namespace ft::torch_op
