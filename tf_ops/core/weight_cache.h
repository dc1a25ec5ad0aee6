// Prepared weights (in a backend's own layout), made once and found again by the identity of the
// buffers that they were made from.
//
// An entry keeps those buffers alive. Their addresses can then not be given to other weights, and a
// framework that assigns a variable must give it a new buffer: an address that is found means the
// same numbers. (Frameworks that assign in place, as TensorFlow's reference variables do, must not
// cache.) An entry whose buffers nobody else holds any more can never be asked for again and is
// dropped.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "tf_ops/core/encoder.h"

namespace ft {

// Keeps the buffers of one set of weights alive.
class WeightHold {
 public:
  virtual ~WeightHold() = default;
  // True if nobody else holds one of the buffers.
  virtual bool IsLastOwner() const = 0;
};

// The weights of one call.
struct WeightInputs {
  std::vector<LayerWeights> layers;
  // Takes a hold of all buffers of `layers`; null: these weights may not be kept.
  std::function<std::unique_ptr<WeightHold>()> hold;
};

struct PreparedWeights {
  Buffer memory;
  void* data() const { return memory.get(); }
};

class WeightCache {
 public:
  // Keeps at most max_bytes of prepared weights, the most recently used ones.
  explicit WeightCache(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // Gives the prepared form of `weights`, which ValidateWeights has checked for encoder.config().
  // Threads that come with the same weights while they are prepared wait for them; others do not.
  Status Get(const Encoder& encoder, const WeightInputs& weights, const ExecutionContext& context,
             std::shared_ptr<const PreparedWeights>* prepared);

  // For tests: weight sets that are kept now, and how often weights were prepared.
  int64_t size() const;
  int64_t num_prepared() const;

 private:
  struct Entry {
    EncoderConfig config;
    std::vector<LayerWeights> layers;
    std::unique_ptr<WeightHold> hold;
    std::shared_ptr<const PreparedWeights> prepared;  // null: under way
    int64_t bytes = 0;
    bool was_found = false;
  };
  using Entries = std::list<std::shared_ptr<Entry>>;

  Entries::iterator Find(const EncoderConfig& config, const std::vector<LayerWeights>& layers);
  bool MayKeep(const EncoderConfig& config, const std::vector<LayerWeights>& layers, int64_t bytes);
  void Drop(Entries::iterator entry);
  // Ends the preparation of `entry`; null: it failed.
  void Publish(const std::shared_ptr<Entry>& entry,
               std::shared_ptr<const PreparedWeights> prepared);

  const int64_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  Entries entries_;  // the most recently used first
  int64_t bytes_ = 0;
  int64_t num_prepared_ = 0;
  // Sets in a row that were dropped without having been found: buffers that are new in every call.
  int num_fruitless_ = 0;
  // Of the sets that were not kept for that reason: one that comes again is worth another try.
  std::deque<uint64_t> not_kept_;
};

// What a cache on a device of memory_bytes may keep: a quarter, or $FT_WEIGHT_CACHE_MIB.
int64_t WeightCacheLimit(int64_t memory_bytes);

}  // namespace ft
