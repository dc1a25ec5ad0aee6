// What PyTorch's models say about padding and attention, as core's inputs say it.
#pragma once

#include <optional>
#include <vector>

#include "tf_ops/core/batch.h"
#include "torch_ops/convert.h"

namespace ft::torch_op {

// sequence_length and attention_mask of EncoderInputs, and the memory that they are views of.
struct AttentionInputs {
  TensorView sequence_length = {nullptr, DataType::kInt32, {0}};
  TensorView attention_mask = {nullptr, DataType::kFloat32, {0}};
  std::vector<int32_t> lengths;
  std::vector<char> fetched_lengths;  // a GPU's sequence_length on the host
  std::optional<Tensor> length_tensor;
  Buffer mask;
};

// What the shape of an attention_mask says.
struct MaskForm {
  bool for_all = false;  // all queries of a sequence see the same keys
};

// InvalidArgument for another type or shape than ReadAttention's.
Status CheckMask(const Tensor& mask, int64_t batch_size, int64_t seq_len, MaskForm* form);

// Reads an op's sequence_length, integers [B], and attention_mask, bool or float32:
// [B,S] or [B,1,1,S] for the keys of all queries, or [B,S,S] or [B,1,S,S]. `hidden_states` is
// [B,S,H].
//
// A mask that is the same for all queries becomes lengths, up to the last key that is seen, and
// stays a mask beside them only where keys before that are not. InvalidArgument for shapes and
// types, and for a float mask with anything but 0 and numbers that leave a key no weight.
Status ReadAttention(const TensorView& hidden_states, const std::optional<Tensor>& sequence_length,
                     const std::optional<Tensor>& attention_mask, Allocator* allocator,
                     AttentionInputs* inputs);

}  // namespace ft::torch_op
