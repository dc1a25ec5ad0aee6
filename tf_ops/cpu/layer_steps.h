// The steps of the layers on parts of a batch: what tasks of the schedules are made of.
#pragma once

#include <utility>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cpu/prepared_weights.h"
#include "tf_ops/cpu/workspace.h"

namespace ft::cpu {

inline char* At(void* base, int64_t elements, int64_t element_bytes) {
  return static_cast<char*>(base) + elements * element_bytes;
}
inline const char* At(const void* base, int64_t elements, int64_t element_bytes) {
  return static_cast<const char*>(base) + elements * element_bytes;
}

// One call: a batch, its weights and its workspace. All methods may run in several threads at once,
// on parts that do not overlap.
class LayerSteps {
 public:
  LayerSteps(const EncoderConfig& config, const Primitives& primitives, const EncoderBatch& batch,
             const void* prepared, const Workspace& workspace);

  const EncoderConfig& config() const { return config_; }
  const Primitives& primitives() const { return primitives_; }
  const EncoderBatch& batch() const { return batch_; }
  const Workspace& workspace() const { return workspace_; }
  const PreparedLayer& weights(int64_t layer) const { return layers_[layer]; }
  int64_t hidden() const { return hidden_; }
  int64_t bytes() const { return bytes_; }  // of an element of the compute type

  // Whether activations are computed in another type than the caller's.
  bool converts() const { return primitives_.compute_dtype != config_.dtype; }

  // First row and number of rows of block `task` of workspace().num_blocks.
  std::pair<int64_t, int64_t> Block(int64_t task) const;

  // Where a layer's input and output live. In the compute type they are the caller's tensors
  // wherever these exist; otherwise workspace().x, and outputs are converted.
  const void* InputOf(int64_t layer) const;
  void* OutputOf(int64_t layer) const;

  // Converts rows of the batch's input, and of a layer's output if the caller wants it.
  void ConvertInput(int64_t row, int64_t rows) const;
  void ConvertOutput(int64_t layer, int64_t row, int64_t rows) const;

  // Columns [begin, end) of out = activation(a m + bias), for rows of a.
  void Dense(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
             int64_t end, const float* bias, bool activate, void* out, int64_t ld_out) const;
  // Columns [begin, end) of sums[rows, H] = a m, in chunks of the summed dimension.
  void Sums(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
            int64_t end, float* sums) const;
  // The chunk from element k of the summed dimension on; the first one starts the sums.
  void SumsChunk(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                 int64_t end, int64_t k, float* sums) const;

  void QkvRows(int64_t layer, int64_t row, int64_t rows) const;
  void AttentionNorm(int64_t layer, const float* sums, int64_t row, int64_t rows, void* out) const;
  void OutputNorm(int64_t layer, const float* sums, const void* residual, int64_t row,
                  int64_t rows) const;

  // Sets workspace().keys of sequence b. A mask that gives every query the same first keys is as
  // good as a length, and the masked keys need no arithmetic: exp(score - 10000) is 0 in float32.
  void FindKeyLengths(int64_t b) const;
  // One head of one sequence, or one of `splits` parts of its queries.
  void Attention(int64_t task, int64_t splits, void* scratch) const;

 private:
  GemmArgs Columns(const PanelMatrix& m, const void* a, int64_t lda, int64_t rows, int64_t begin,
                   int64_t end) const;
  void* CallerOutput(int64_t layer) const;
  void Norm(const float* sums, const float* bias, const void* residual, const float* gamma,
            const float* beta, void* out, int64_t rows) const;

  const EncoderConfig& config_;
  const Primitives& primitives_;
  const EncoderBatch& batch_;
  const Workspace& workspace_;
  const int64_t hidden_, bytes_;
  std::vector<PreparedLayer> layers_;
};

}  // namespace ft::cpu
