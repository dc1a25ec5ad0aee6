#include "tf_ops/core/batch.h"

#include <cstring>
#include <limits>

namespace ft {
namespace {

// Integers of the host, int32 or int64, at any address.
class HostIntegers {
 public:
  explicit HostIntegers(const TensorView& view)
      : data_(static_cast<const char*>(view.data)), wide_(view.dtype == DataType::kInt64) {}

  int64_t operator[](int64_t i) const {
    if (wide_) {
      int64_t value;
      std::memcpy(&value, data_ + i * 8, 8);
      return value;
    }
    int32_t value;
    std::memcpy(&value, data_ + i * 4, 4);
    return value;
  }

 private:
  const char* const data_;
  const bool wide_;
};

Status CheckType(const char* name, const TensorView& view, DataType expected) {
  if (view.dtype == expected) return OkStatus();
  return InvalidArgument(name, " has dtype ", Name(view.dtype), ", expected ", Name(expected));
}

bool IsVector(const Shape& shape, int64_t size) { return shape.size() == 1 && shape[0] == size; }

// Row numbers are int32, and so are lengths and offsets.
Status CheckRows(const char* name, const Shape& shape, int64_t batch_size, int64_t max_seq_len) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() - 1;
  if (batch_size > kMax || max_seq_len > kMax ||
      (batch_size > 0 && max_seq_len > kMax / batch_size)) {
    return InvalidArgument(name, " has shape ", ShapeString(shape),
                           ", expected B, S and B * S below 2^31");
  }
  return OkStatus();
}

// B and S of a mask [B,1,S,S] or [B,S,S].
Status MaskSizes(const char* name, const Shape& shape, int64_t* batch_size, int64_t* max_seq_len) {
  const int rank = shape.size();
  const bool good =
      (rank == 3 || (rank == 4 && shape[1] == 1)) && shape[rank - 1] == shape[rank - 2];
  if (!good) {
    return InvalidArgument(name, " has shape ", ShapeString(shape),
                           ", expected [B,1,S,S] or [B,S,S]");
  }
  *batch_size = shape[0];
  *max_seq_len = shape[rank - 1];
  return CheckRows(name, shape, *batch_size, *max_seq_len);
}

// Reads sequence_length [B], each in [0,S].
Status ReadLengths(const TensorView& lengths, int64_t batch_size, int64_t max_seq_len,
                   std::vector<int32_t>* values) {
  if (!IsVector(lengths.shape, batch_size)) {
    return InvalidArgument("sequence_length has shape ", ShapeString(lengths.shape), ", expected [",
                           batch_size, "]");
  }
  if (lengths.dtype != DataType::kInt64) {
    FT_RETURN_IF_ERROR(CheckType("sequence_length", lengths, DataType::kInt32));
  }
  const HostIntegers integers(lengths);
  values->resize(batch_size);
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t length = integers[b];
    if (length < 0 || length > max_seq_len) {
      return InvalidArgument("sequence_length[", b, "] is ", length, ", expected 0 to ",
                             max_seq_len);
    }
    (*values)[b] = static_cast<int32_t>(length);
  }
  return OkStatus();
}

// 0, s1, s1 + s2, ... of lengths whose sum fits.
std::vector<int32_t> OffsetsOf(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets(lengths.size() + 1, 0);
  for (size_t b = 0; b < lengths.size(); ++b) offsets[b + 1] = offsets[b] + lengths[b];
  return offsets;
}

// BertTransformer's padded rows: the mask alone decides about attention; the offsets are checked.
Status CheckPadded(const LayerInputs& inputs, LayerPlan* plan) {
  const Shape& from = inputs.from_tensor.shape;
  const int64_t batch_size = plan->batch_size, seq_len = plan->max_seq_len;
  plan->num_tokens = batch_size * seq_len;
  const bool good =
      from.size() == 3 ? from[0] == batch_size && from[1] == seq_len : from[0] == plan->num_tokens;
  if (!good) {
    return InvalidArgument("from_tensor has shape ", ShapeString(from), ", expected [", batch_size,
                           ",", seq_len, ",H] or [", plan->num_tokens, ",H], by attr_mask's shape ",
                           ShapeString(inputs.attention_mask.shape));
  }
  if (!IsVector(inputs.seqlen_offset.shape, 2 * batch_size + 1)) {
    return InvalidArgument("trt_seqlen_offset has shape ", ShapeString(inputs.seqlen_offset.shape),
                           ", expected [", 2 * batch_size + 1, "] = 2B+1");
  }
  const HostIntegers values(inputs.seqlen_offset);
  for (int64_t i = 0; i <= 2 * batch_size; ++i) {
    const int64_t low = i / 2 * seq_len, high = i % 2 ? low + seq_len : low;
    if (values[i] < low || values[i] > high) {
      return InvalidArgument("trt_seqlen_offset[", i, "] is ", values[i], ", expected ", low,
                             high == low ? std::string() : StrCat(" to ", high),
                             " (0, s1, S, S+s2, 2S, ... with S = ", seq_len, ")");
    }
  }
  return OkStatus();
}

// BertTransformer's packed rows.
Status CheckPacked(const LayerInputs& inputs, LayerPlan* plan) {
  const Shape &from = inputs.from_tensor.shape, &ids_shape = inputs.sequence_id_offset.shape;
  const int64_t batch_size = plan->batch_size, seq_len = plan->max_seq_len;
  if (ids_shape.size() != 1 || ids_shape[0] > batch_size * seq_len) {
    return InvalidArgument("sequence_id_offset has shape ", ShapeString(ids_shape),
                           ", expected [T] with T at most B * S = ", batch_size * seq_len);
  }
  const int64_t tokens = plan->num_tokens = ids_shape[0];
  if (from.size() != 2 || from[0] != tokens) {
    return InvalidArgument("from_tensor has shape ", ShapeString(from), ", expected [", tokens,
                           ",H] by the length of sequence_id_offset, as remove_padding is true");
  }
  if (!IsVector(inputs.seqlen_offset.shape, batch_size + 1)) {
    return InvalidArgument("trt_seqlen_offset has shape ", ShapeString(inputs.seqlen_offset.shape),
                           ", expected [", batch_size + 1, "] = B+1");
  }
  const HostIntegers ends(inputs.seqlen_offset), ids(inputs.sequence_id_offset);
  if (ends[0] != 0) return InvalidArgument("trt_seqlen_offset[0] is ", ends[0], ", expected 0");
  if (ends[batch_size] != tokens) {
    return InvalidArgument("trt_seqlen_offset[", batch_size, "] is ", ends[batch_size],
                           ", expected ", tokens, ", the length of sequence_id_offset");
  }
  // All ends first: below they index sequence_id_offset.
  plan->seq_offsets.assign(batch_size + 1, 0);
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t low = ends[b], high = low + seq_len;
    if (ends[b + 1] < low || ends[b + 1] > high) {
      return InvalidArgument("trt_seqlen_offset[", b + 1, "] is ", ends[b + 1], ", expected ", low,
                             " to ", high, ": the one before and at most S = ", seq_len, " more");
    }
    plan->seq_offsets[b + 1] = static_cast<int32_t>(ends[b + 1]);
  }
  for (int64_t b = 0; b < batch_size; ++b) {
    const int64_t expected = b * seq_len - plan->seq_offsets[b];
    for (int64_t i = plan->seq_offsets[b]; i < plan->seq_offsets[b + 1]; ++i) {
      if (ids[i] != expected) {
        return InvalidArgument("sequence_id_offset[", i, "] is ", ids[i], ", expected ", expected,
                               " by trt_seqlen_offset (sequence ", b, ")");
      }
    }
  }
  return OkStatus();
}

}  // namespace

Status PlanEncoder(const EncoderConfig& config, const EncoderInputs& inputs, EncoderPlan* plan) {
  const Shape& hidden = inputs.hidden_states.shape;
  const Shape& mask = inputs.attention_mask.shape;
  if (hidden.size() != 3 || hidden[2] != config.hidden_size()) {
    return InvalidArgument("hidden_states has shape ", ShapeString(hidden), ", expected [B,S,",
                           config.hidden_size(), "]; the last is head_num * size_per_head");
  }
  FT_RETURN_IF_ERROR(CheckType("hidden_states", inputs.hidden_states, config.dtype));
  const int64_t batch_size = plan->batch_size = hidden[0];
  const int64_t seq_len = plan->max_seq_len = hidden[1];
  FT_RETURN_IF_ERROR(CheckRows("hidden_states", hidden, batch_size, seq_len));
  plan->has_mask = !IsVector(mask, 0);
  if (plan->has_mask) {
    FT_RETURN_IF_ERROR(CheckType("attention_mask", inputs.attention_mask, config.dtype));
    int64_t mask_batch, mask_len;
    FT_RETURN_IF_ERROR(MaskSizes("attention_mask", mask, &mask_batch, &mask_len));
    if (mask_batch != batch_size || mask_len != seq_len) {
      return InvalidArgument("attention_mask has shape ", ShapeString(mask), ", expected [",
                             batch_size, ",1,", seq_len, ",", seq_len, "] or [", batch_size, ",",
                             seq_len, ",", seq_len, "] by hidden_states, or [0] for none");
    }
  }
  plan->num_tokens = batch_size * seq_len;
  if (IsVector(inputs.sequence_length.shape, 0)) {
    if (inputs.remove_padding && batch_size > 0) {
      return InvalidArgument("sequence_length has shape [0], expected [", batch_size,
                             "], as remove_padding is true");
    }
    return OkStatus();
  }
  std::vector<int32_t> lengths;
  FT_RETURN_IF_ERROR(ReadLengths(inputs.sequence_length, batch_size, seq_len, &lengths));
  std::vector<int32_t> offsets = OffsetsOf(lengths);
  if (offsets.back() == plan->num_tokens) return OkStatus();  // full sequences need no lengths
  if (inputs.remove_padding) {
    plan->num_tokens = offsets.back();
    plan->seq_offsets = std::move(offsets);
  } else {
    plan->key_lengths = std::move(lengths);
  }
  return OkStatus();
}

Status PlanLayer(const EncoderConfig& config, const LayerInputs& inputs, LayerPlan* plan) {
  const Shape& from = inputs.from_tensor.shape;
  const Shape& to = inputs.to_tensor.shape;
  const int64_t hidden = config.hidden_size();
  if ((from.size() != 2 && from.size() != 3) || from[from.size() - 1] != hidden) {
    return InvalidArgument("from_tensor has shape ", ShapeString(from), ", expected [B,S,", hidden,
                           "], [B*S,", hidden, "] or, without padding, [T,", hidden,
                           "]; the last is head_num * size_per_head");
  }
  if (to != from) {
    return InvalidArgument("to_tensor has shape ", ShapeString(to), ", expected from_tensor's, ",
                           ShapeString(from));
  }
  FT_RETURN_IF_ERROR(CheckType("from_tensor", inputs.from_tensor, config.dtype));
  FT_RETURN_IF_ERROR(CheckType("attr_mask", inputs.attention_mask, config.dtype));
  FT_RETURN_IF_ERROR(CheckType("trt_seqlen_offset", inputs.seqlen_offset, DataType::kInt32));
  FT_RETURN_IF_ERROR(CheckType("sequence_id_offset", inputs.sequence_id_offset, DataType::kInt32));
  FT_RETURN_IF_ERROR(
      MaskSizes("attr_mask", inputs.attention_mask.shape, &plan->batch_size, &plan->max_seq_len));
  FT_RETURN_IF_ERROR(inputs.remove_padding ? CheckPacked(inputs, plan) : CheckPadded(inputs, plan));
  if (plan->num_tokens > 0 && inputs.to_tensor.data != inputs.from_tensor.data) {
    return InvalidArgument(
        "to_tensor is another tensor than from_tensor, expected the same: attention is that of "
        "from_tensor to itself");
  }
  return OkStatus();
}

Status PlanRemovePadding(const TensorView& from_tensor, const TensorView& sequence_length,
                         PaddingPlan* plan) {
  const Shape& from = from_tensor.shape;
  if (from.size() != 3) {
    return InvalidArgument("from_tensor has shape ", ShapeString(from), ", expected [B,S,H]");
  }
  plan->batch_size = from[0];
  plan->max_seq_len = from[1];
  plan->hidden_size = from[2];
  FT_RETURN_IF_ERROR(CheckRows("from_tensor", from, plan->batch_size, plan->max_seq_len));
  std::vector<int32_t> lengths;
  FT_RETURN_IF_ERROR(ReadLengths(sequence_length, plan->batch_size, plan->max_seq_len, &lengths));
  plan->seq_offsets = OffsetsOf(lengths);
  plan->num_tokens = plan->seq_offsets.back();
  plan->id_offsets.reserve(plan->num_tokens);
  for (int64_t b = 0; b < plan->batch_size; ++b) {
    plan->id_offsets.insert(plan->id_offsets.end(), lengths[b],
                            static_cast<int32_t>(b * plan->max_seq_len - plan->seq_offsets[b]));
  }
  return OkStatus();
}

Status PlanRebuildPadding(const TensorView& from_tensor, const TensorView& sequence_id_offset,
                          const TensorView& atten_mask, PaddingPlan* plan) {
  const Shape& from = from_tensor.shape;
  if (from.size() != 2) {
    return InvalidArgument("from_tensor has shape ", ShapeString(from), ", expected [T,H]");
  }
  plan->hidden_size = from[1];
  FT_RETURN_IF_ERROR(CheckType("sequence_id_offset", sequence_id_offset, DataType::kInt32));
  if (!IsVector(sequence_id_offset.shape, from[0])) {
    return InvalidArgument("sequence_id_offset has shape ", ShapeString(sequence_id_offset.shape),
                           ", expected [", from[0], "], a value for each row of from_tensor");
  }
  FT_RETURN_IF_ERROR(
      MaskSizes("atten_mask", atten_mask.shape, &plan->batch_size, &plan->max_seq_len));
  const int64_t tokens = from[0], seq_len = plan->max_seq_len, rows = plan->batch_size * seq_len;
  const HostIntegers ids(sequence_id_offset);
  std::vector<int32_t> lengths(plan->batch_size, 0);
  bool from_lengths = true;
  int64_t previous = -1;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t row = i + ids[i];
    if (row <= previous || row >= rows) {
      return InvalidArgument("sequence_id_offset[", i, "] is ", ids[i], ", which is row ", row,
                             " of the padded layout, expected a row above ", previous,
                             " and below B * S = ", rows);
    }
    previous = row;
    from_lengths = from_lengths && row % seq_len == lengths[row / seq_len];
    ++lengths[row / seq_len];
  }
  plan->num_tokens = tokens;
  // As BuildMaskRemovePadding makes them: B + 1 numbers say what T do.
  if (from_lengths) {
    plan->seq_offsets = OffsetsOf(lengths);
    return OkStatus();
  }
  plan->id_offsets.resize(tokens);
  for (int64_t i = 0; i < tokens; ++i) plan->id_offsets[i] = static_cast<int32_t>(ids[i]);
  return OkStatus();
}

}  // namespace ft
