// The checks of everything that a caller says about a batch (lengths, offsets, ids, masks, shapes),
// and the plan of padding removal. Integers are host memory, int32 or int64, of any alignment; of
// the other tensors only types, shapes and addresses are read. Every error is InvalidArgument with
// the tensor's name, what it is and what is expected.
#pragma once

#include <vector>

#include "tf_ops/core/encoder.h"

namespace ft {

// What BertEncoder is given.
struct EncoderInputs {
  TensorView hidden_states;    // [B,S,H]
  TensorView sequence_length;  // host integers [B], or [0]: all have S tokens
  TensorView attention_mask;   // [B,1,S,S] or [B,S,S], or [0]: none
  bool remove_padding = false;
};

struct EncoderPlan {
  int64_t batch_size = 0, max_seq_len = 0;
  int64_t num_tokens = 0;  // rows that are computed
  bool has_mask = false;
  // int32 [B+1], the rows of each sequence once padding is removed; empty where nothing is removed.
  std::vector<int32_t> seq_offsets;
  // int32 [B] where padding stays and sequences are shorter than S, else empty.
  std::vector<int32_t> key_lengths;
};

Status PlanEncoder(const EncoderConfig& config, const EncoderInputs& inputs, EncoderPlan* plan);

// What BertTransformer is given: rows that BuildMaskRemovePadding packed, or padded ones.
struct LayerInputs {
  TensorView from_tensor;         // [B,S,H], [B*S,H] or packed [T,H]
  TensorView to_tensor;           // from_tensor itself
  TensorView attention_mask;      // [B,1,S,S] or [B,S,S]
  TensorView sequence_id_offset;  // packed: host int32 [T]; else not read
  TensorView seqlen_offset;       // host int32, packed [B+1], else [2B+1]
  bool remove_padding = false;
};

struct LayerPlan {
  int64_t batch_size = 0, max_seq_len = 0, num_tokens = 0;
  std::vector<int32_t> seq_offsets;  // int32 [B+1] of packed rows, else empty
};

Status PlanLayer(const EncoderConfig& config, const LayerInputs& inputs, LayerPlan* plan);

// What BuildMaskRemovePadding and RebuildPadding do with rows of any type.
struct PaddingPlan {
  int64_t batch_size = 0, max_seq_len = 0, num_tokens = 0, hidden_size = 0;
  std::vector<int32_t> seq_offsets;  // int32 [B+1]; empty where id_offsets are no BuildMask's
  std::vector<int32_t> id_offsets;   // int32 [T]: packed row i is padded row i + id_offsets[i]
};

// from_tensor [B,S,H], sequence_length [B].
Status PlanRemovePadding(const TensorView& from_tensor, const TensorView& sequence_length,
                         PaddingPlan* plan);

// from_tensor [T,H], sequence_id_offset [T] with ascending rows, atten_mask [B,1,S,S] or [B,S,S].
Status PlanRebuildPadding(const TensorView& from_tensor, const TensorView& sequence_id_offset,
                          const TensorView& atten_mask, PaddingPlan* plan);

}  // namespace ft
