// The interface that the CPU and the CUDA backend implement: a stack of post-layer-norm BERT
// layers.
//
//   q,k,v = x Wqkv + b;  a = softmax(q k^T / sqrt(D) + (1 - mask) * -10000) v
//   y = LayerNorm(a Wo + b + x);  out = LayerNorm(act(y W1 + b) W2 + b + y)
//
// Any number of threads may call Run of one Encoder at once: all that it changes are caches
// (algorithms, CUDA graphs), on which no result depends. It owns no tensor memory: prepared weights
// and workspace are given by the caller, so that they come from the framework's allocators.
// Pointers are host pointers for the CPU and device pointers for CUDA.
#pragma once

#include <string>
#include <vector>

#include "tf_ops/core/encoder_config.h"
#include "tf_ops/core/execution.h"
#include "tf_ops/core/weights.h"

namespace ft {

// One batch. Two layouts of the rows that are computed, and of those of `input` and `outputs`:
//   padded  row b*S+i is token i of sequence b; T = B*S
//   packed  row seq_offsets[b]+i is token i of sequence b; T = seq_offsets[B]
struct EncoderBatch {
  int64_t batch_size = 0;   // B
  int64_t max_seq_len = 0;  // S
  int64_t num_tokens = 0;   // T
  // Packed layout: rows that input and outputs have room for, at least T. Those past T hold
  // anything, and may be computed: sizes that differ a little are then the same work. 0: T.
  int64_t num_rows = 0;
  bool packed = false;
  // Packed rows of padded tensors, where Encoder::RemovesPadding(): of `input` [B,S,H] no other
  // rows are read, and those of `outputs` [B,S,H] become 0.
  bool has_padded_tensors = false;
  // int32 [B+1], ascending from 0 to T, no step above S. Packed layout only, else null.
  const int32_t* seq_offsets = nullptr;
  // int32 [B] in [0,S]: query rows of sequence b attend to its first key_lengths[b] keys.
  // Padded layout only; null means all S keys. A length of 0 gives attention output 0.
  const int32_t* key_lengths = nullptr;
  // [B,S,S] of config.dtype, or null. Query i of sequence b sees key j with (1 - mask) * -10000
  // added to the scaled score. Honoured on top of the lengths.
  const void* attention_mask = nullptr;
  const void* input = nullptr;  // [T,H], or padded
  // Either one pointer (the last layer's output, like the input) or num_layers of them. May not
  // alias input.
  std::vector<void*> outputs;

  int64_t rows() const { return num_rows > 0 ? num_rows : num_tokens; }
};

class Encoder {
 public:
  virtual ~Encoder() = default;

  virtual const EncoderConfig& config() const = 0;

  // Bytes of the prepared weights of all layers.
  virtual int64_t PreparedWeightBytes() const = 0;

  // Whether Run takes packed batches of padded tensors.
  virtual bool RemovesPadding() const { return false; }

  // Names what the prepared form depends on beside the config: the same name, the same layout.
  virtual std::string weight_layout() const = 0;

  // Brings the weights of all layers into the backend's own layout. `prepared` is aligned to
  // kAlignment, or on the host to kTensorAlignment (prepared_tensor.h). Weights are checked first
  // (ValidateWeights).
  virtual Status PrepareWeights(const std::vector<LayerWeights>& layers, void* prepared,
                                const ExecutionContext& context) const = 0;

  // Bytes of temporary memory that Run needs for `batch`; only sizes and flags of it are read.
  virtual Status WorkspaceBytes(const EncoderBatch& batch, const ExecutionContext& context,
                                int64_t* bytes) const = 0;

  // Computes all layers. `workspace` is aligned to kAlignment; its content may be anything.
  virtual Status Run(const EncoderBatch& batch, const void* prepared, void* workspace,
                     const ExecutionContext& context) const = 0;
};

// Checks what can be checked on the host about sizes and pointers of `batch`.
Status ValidateBatch(const EncoderConfig& config, const EncoderBatch& batch);

}  // namespace ft
