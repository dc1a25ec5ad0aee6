// The steps of the layers on parts of a batch: what tasks of the schedules are made of.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cpu/phases.h"
#include "tf_ops/cpu/prepared_weights.h"
#include "tf_ops/cpu/workspace.h"

namespace ft::cpu {

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
  int64_t hidden() const { return hidden_; }

  // First row and number of rows of block `task` of workspace().num_blocks.
  std::pair<int64_t, int64_t> Block(int64_t task) const;

  // The rows by blocks, and by sequences.
  std::shared_ptr<const RowParts> Blocks() const;
  std::shared_ptr<const RowParts> Sequences() const;

  // Whether the batch's input has to be brought into another type or place before the first layer.
  bool has_input_step() const { return copies() || integers(); }
  void PrepareInput(int64_t row, int64_t rows) const;

  // The part of a layer's weights that a product's columns from `begin` on read first.
  Phases::Bytes FirstPanel(int64_t layer, PanelMatrix PreparedLayer::* matrix, int64_t begin) const;

  // Columns [begin, end) of the layer's queries, keys and values side by side. Of `s` products use
  // the memory for one call.
  void Qkv(int64_t layer, int64_t row, int64_t rows, int64_t begin, int64_t end,
           const WorkerScratch& s) const;

  // The steps from here on leave their results in `s`, the scratch of the rows from `row` on, for
  // the next one. Columns [begin, end) of the attention output product.
  void Projection(int64_t layer, int64_t row, int64_t rows, int64_t begin, int64_t end,
                  const WorkerScratch& s) const;
  void AttentionNorm(int64_t layer, int64_t row, int64_t rows, const WorkerScratch& s) const;
  // Columns [begin, end) of the inner layer, the first of which lies in s.inner's column `at`.
  void Intermediate(int64_t layer, int64_t rows, int64_t begin, int64_t end, int64_t at,
                    const WorkerScratch& s) const;
  // Columns [begin, end) of the output product of the inner columns [k, k + num_k), which s.inner
  // begins with; those before k are in its sums already.
  void Output(int64_t layer, int64_t rows, int64_t begin, int64_t end, int64_t k, int64_t num_k,
              const WorkerScratch& s) const;
  // Writes the layer's output.
  void OutputNorm(int64_t layer, int64_t row, int64_t rows, const WorkerScratch& s) const;

  // Padded tensors: the rows behind sequence b become 0 in the outputs.
  void ClearPadding(int64_t b) const;

  // Sets workspace().keys of sequence b. A mask that gives every query the same first keys is as
  // good as a length, and the masked keys need no arithmetic: exp(score - 10000) is 0 in float32.
  void FindKeyLengths(int64_t b) const;
  // One head of sequence b, or one of `splits` parts of its queries: task / splits is the head.
  void Attention(int64_t layer, int64_t b, int64_t task, int64_t splits, void* scratch) const;

 private:
  // Whether activations are computed in another type or other rows than the caller's.
  bool copies() const {
    return primitives_.compute_dtype != config_.dtype || batch_.has_padded_tensors;
  }
  bool integers() const { return primitives_.has_integers(); }

  // Where a layer's input and output live. Unless copies(), they are the caller's tensors wherever
  // these exist; otherwise workspace().x, and outputs are copied.
  Rows InputOf(int64_t layer) const;
  Rows OutputOf(int64_t layer) const;
  void* CallerOutput(int64_t layer) const;
  // Copies rows of a layer's output to the caller's tensor, if that is another one.
  void CopyOutput(int64_t layer, int64_t row, int64_t rows) const;
  // copy(row, rows, at) for rows that are the caller's from row `at` of a tensor on, until all of
  // the rows [row, row + rows) have been named.
  template <typename CopyRows>
  void ForCallersRows(int64_t row, int64_t rows, CopyRows copy) const;

  // The panel of `column`, and its numbers from row k on.
  const char* PanelOf(const PanelMatrix& m, int64_t column) const;
  const char* PanelAt(const PanelMatrix& m, int64_t column, int64_t k) const;
  GemmArgs Columns(const PanelMatrix& m, const Rows& a, int64_t row, int64_t rows, int64_t begin,
                   int64_t end, const WorkerScratch& s) const;
  // `g` with float32 sums of the columns from `begin` on as its result; the last chunk's `scale`
  // and `rounded_unit` are INT8's.
  void Sum(GemmArgs g, const PanelMatrix& m, const float* scale, float rounded_unit, int64_t begin,
           const WorkerScratch& s) const;
  LayerNormArgs NormArgs(const float* sums, const float* bias, const float* gamma,
                         const float* beta, int64_t rows) const;

  const EncoderConfig& config_;
  const Primitives& primitives_;
  const EncoderBatch& batch_;
  const Workspace& workspace_;
  const int64_t hidden_;
  std::vector<PreparedLayer> layers_;
};

}  // namespace ft::cpu
