// What a framework's front end calls: checks, prepared weights, the choice of the encoder, padding
// removed and rebuilt. A front end converts its tensors to views, hands over its allocator, stream
// or threads, and allocates the outputs between planning and running:
//
//   EncoderPlan plan;
//   PlanEncoder(runner.config(), inputs, &plan);        // what is wrong with the batch
//   runner.Prepare(weights, context, &prepared);        // what is wrong with the weights
//   ... allocate the outputs ...
//   runner.Run(prepared, inputs, plan, outputs, context);
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tf_ops/core/backend.h"
#include "tf_ops/core/batch.h"
#include "tf_ops/core/scratch.h"
#include "tf_ops/core/weight_cache.h"

namespace ft {

// What all Runners of a device share. On a GPU all their calls are on one stream.
struct DeviceCaches {
  explicit DeviceCaches(int64_t max_weight_bytes) : weights(max_weight_bytes) {}
  WeightCache weights;
  Scratch scratch;
};

// An encoder and the weights that it runs with.
struct PreparedEncoder {
  std::shared_ptr<Encoder> encoder;
  std::shared_ptr<const PreparedWeights> weights;
};

// One model part: a BertEncoder or BertTransformer of one configuration. Any number of threads may
// use it at once.
class Runner {
 public:
  // The inner size of `config` is not read: it comes with the weights.
  Runner(const EncoderConfig& config, const EncoderOptions& options, const Backend* backend,
         std::shared_ptr<DeviceCaches> caches)
      : config_(config), options_(options), backend_(backend), caches_(std::move(caches)) {}

  const EncoderConfig& config() const { return config_; }

  // Checks the weights and gives the encoder that runs with them: what a front end that keeps
  // prepared weights itself begins with.
  Status CheckWeights(const std::vector<LayerWeights>& layers, std::shared_ptr<Encoder>* encoder);

  // The encoder for layers of this inner size, which is at least 1.
  Status GetEncoder(int64_t inner_size, std::shared_ptr<Encoder>* encoder);

  // Checks the weights and prepares them, or finds them prepared.
  Status Prepare(const WeightInputs& weights, const ExecutionContext& context,
                 PreparedEncoder* prepared);

  // Computes a planned batch; `outputs` are one [B,S,H] or one for each layer. Rows past a
  // sequence's length are 0 where padding is removed.
  Status Run(const PreparedEncoder& prepared, const EncoderInputs& inputs, const EncoderPlan& plan,
             const std::vector<void*>& outputs, const ExecutionContext& context) const;

  // The same for BertTransformer; `output` has from_tensor's shape.
  Status Run(const PreparedEncoder& prepared, const LayerInputs& inputs, const LayerPlan& plan,
             void* output, const ExecutionContext& context) const;

 private:
  static constexpr size_t kMaxEncoders = 64;

  int64_t row_bytes() const { return config_.hidden_size() * SizeOf(config_.dtype); }
  // True if rows and mask of the batch are to be copied to addresses that stay: they are small, and
  // lie where no recent batch's lay.
  bool IsStaged(const EncoderBatch& batch, bool takes_turns) const;
  // Computes the caller's rows. `integers` become the batch's seq_offsets, if it is packed, or its
  // key_lengths; none: it has neither.
  Status RunRows(const PreparedEncoder& prepared, EncoderBatch batch,
                 const std::vector<int32_t>& integers, const ExecutionContext& context) const;
  Status RunWithoutPadding(const PreparedEncoder& prepared, const EncoderPlan& plan,
                           EncoderBatch batch, const ExecutionContext& context) const;
  Status RunEncoder(const PreparedEncoder& prepared, const EncoderBatch& batch, void* workspace,
                    const ExecutionContext& context) const;

  const EncoderConfig config_;
  const EncoderOptions options_;
  const Backend* const backend_;
  const std::shared_ptr<DeviceCaches> caches_;
  mutable std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Encoder>> encoders_;  // by inner size
  mutable std::deque<std::vector<const void*>> recent_;   // addresses of batches; the newest first
};

// BuildMaskRemovePadding and RebuildPadding on rows of row_bytes bytes.
Status RemovePadding(const Backend& backend, const PaddingPlan& plan, const void* padded,
                     int64_t row_bytes, void* packed, const ExecutionContext& context);
Status RebuildPadding(const Backend& backend, const PaddingPlan& plan, const void* packed,
                      int64_t row_bytes, void* padded, const ExecutionContext& context);

}  // namespace ft
