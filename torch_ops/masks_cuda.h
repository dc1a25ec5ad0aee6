// masks.h for tensors on a GPU.
#pragma once

#include "torch_ops/masks.h"

namespace ft::torch_op {

// As ReadAttention, for an attention_mask on the GPU of `hidden_states` and a sequence_length on
// the host or there.
//
// With `reads_lengths` a mask that is the same for all queries becomes lengths: the host waits for
// the GPU and fetches them. Else it stays a mask, of which nobody reads the numbers on the host,
// except those of a float mask, which are checked. FailedPrecondition where the host would have to
// wait while a CUDA graph is captured.
Status ReadCudaAttention(const TensorView& hidden_states,
                         const std::optional<Tensor>& sequence_length,
                         const std::optional<Tensor>& attention_mask, bool reads_lengths,
                         const ExecutionContext& context, AttentionInputs* inputs);

}  // namespace ft::torch_op
