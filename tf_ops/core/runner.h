// What a framework's front end calls: checks, prepared weights, the choice of the encoder, padding
// removed and rebuilt. A front end converts its tensors to views, hands over its allocator, stream or
// threads, and allocates the outputs between planning and running:
//
//   EncoderPlan plan;
//   PlanEncoder(runner.config(), inputs, &plan);        // what is wrong with the batch
//   runner.Prepare(weights, context, &prepared);        // what is wrong with the weights
//   ... allocate the outputs ...
//   runner.Run(prepared, inputs, plan, outputs, context);
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tf_ops/core/backend.h"
#include "tf_ops/core/batch.h"
#include "tf_ops/core/weight_cache.h"

namespace ft {

// An encoder and the weights that it runs with.
struct PreparedEncoder {
  std::shared_ptr<Encoder> encoder;
  std::shared_ptr<const PreparedWeights> weights;
};

// One model part: a BertEncoder or BertTransformer of one configuration. Any number of threads may
// use it at once. On a GPU all calls of a Runner, and of all that share its cache, are on one stream.
class Runner {
 public:
  // The inner size of `config` is not read: it comes with the weights. `backend` and `cache` are
  // shared by all Runners of a device.
  Runner(const EncoderConfig& config, const EncoderOptions& options, const Backend* backend,
         std::shared_ptr<WeightCache> cache)
      : config_(config), options_(options), backend_(backend), cache_(std::move(cache)) {}

  const EncoderConfig& config() const { return config_; }

  // Checks the weights and prepares them, or finds them prepared.
  Status Prepare(const WeightInputs& weights, const ExecutionContext& context,
                 PreparedEncoder* prepared);

  // Computes a planned batch; `outputs` are one [B,S,H] or one for each layer. Rows past a sequence's
  // length are 0 where padding is removed.
  Status Run(const PreparedEncoder& prepared, const EncoderInputs& inputs, const EncoderPlan& plan,
             const std::vector<void*>& outputs, const ExecutionContext& context) const;

  // The same for BertTransformer; `output` has from_tensor's shape.
  Status Run(const PreparedEncoder& prepared, const LayerInputs& inputs, const LayerPlan& plan,
             void* output, const ExecutionContext& context) const;

 private:
  static constexpr size_t kMaxEncoders = 64;

  Status GetEncoder(int64_t inner_size, std::shared_ptr<Encoder>* encoder);
  Status RunEncoder(const PreparedEncoder& prepared, EncoderBatch batch,
                    const ExecutionContext& context) const;
  Status RunWithoutPadding(const PreparedEncoder& prepared, const EncoderPlan& plan,
                           EncoderBatch batch, const ExecutionContext& context) const;

  const EncoderConfig config_;
  const EncoderOptions options_;
  const Backend* const backend_;
  const std::shared_ptr<WeightCache> cache_;
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<Encoder>> encoders_;  // by inner size
};

// BuildMaskRemovePadding and RebuildPadding on rows of row_bytes bytes.
Status RemovePadding(const Backend& backend, const PaddingPlan& plan, const void* padded,
                     int64_t row_bytes, void* packed, const ExecutionContext& context);
Status RebuildPadding(const Backend& backend, const PaddingPlan& plan, const void* packed,
                      int64_t row_bytes, void* padded, const ExecutionContext& context);

}  // namespace ft
