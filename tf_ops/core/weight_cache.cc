#include "tf_ops/core/weight_cache.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace ft {
namespace {

// After this many sets that were never found again, a set is kept at its second call only.
constexpr int kMaxFruitless = 8;
// How many sets that were not kept are remembered: more than a model has layers.
constexpr size_t kMaxNotKept = 256;

// A number that stands for the buffers' addresses.
uint64_t Fingerprint(const EncoderConfig& config, const std::vector<LayerWeights>& layers) {
  uint64_t hash = 0;
  for (const LayerWeights& layer : layers) {
    for (int i = 0; i < NumSources(config); ++i) {
      hash ^= reinterpret_cast<uintptr_t>(Source(layer, i).data);
      hash *= 0x9e3779b97f4a7c15ull;
      hash ^= hash >> 32;
    }
  }
  return hash;
}

// What the prepared form depends on.
bool SameLayout(const EncoderConfig& a, const EncoderConfig& b) {
  return a.dtype == b.dtype && a.num_heads == b.num_heads && a.head_size == b.head_size &&
         a.inner_size == b.inner_size && a.num_layers == b.num_layers &&
         a.int8_mode == b.int8_mode && a.fp8_mode == b.fp8_mode;
}

bool SameBuffers(const EncoderConfig& config, const std::vector<LayerWeights>& a,
                 const std::vector<LayerWeights>& b) {
  for (size_t layer = 0; layer < a.size(); ++layer) {
    for (int i = 0; i < NumSources(config); ++i) {
      const TensorView& x = Source(a[layer], i);
      const TensorView& y = Source(b[layer], i);
      if (x.data != y.data || x.dtype != y.dtype || x.shape != y.shape) return false;
    }
  }
  return true;
}

Status Prepare(const Encoder& encoder, const WeightInputs& weights, const ExecutionContext& context,
               std::shared_ptr<const PreparedWeights>* prepared) {
  if (context.log != nullptr) {
    context.log(StrCat("prepares weights, ", encoder.PreparedWeightBytes(), " bytes"));
  }
  auto made = std::make_shared<PreparedWeights>();
  FT_RETURN_IF_ERROR(context.allocator->Allocate(encoder.PreparedWeightBytes(), &made->memory));
  FT_RETURN_IF_ERROR(encoder.PrepareWeights(weights.layers, made->data(), context));
  *prepared = std::move(made);
  return OkStatus();
}

}  // namespace

int64_t WeightCacheLimit(int64_t memory_bytes) {
  if (const char* text = std::getenv("FT_WEIGHT_CACHE_MIB")) {
    char* end;
    const long long mib = std::strtoll(text, &end, 10);
    if (end != text && *end == 0 && mib >= 0 && mib < (1ll << 40)) return mib << 20;
    std::fprintf(stderr,
                 "[WARNING] FT_WEIGHT_CACHE_MIB is \"%s\", expected a number of MiB: ignored\n",
                 text);
  }
  return memory_bytes / 4;
}

WeightCache::Entries::iterator WeightCache::Find(const EncoderConfig& config,
                                                 const std::vector<LayerWeights>& layers) {
  auto entry = entries_.begin();
  while (entry != entries_.end() &&
         !(SameLayout((*entry)->config, config) && SameBuffers(config, (*entry)->layers, layers))) {
    ++entry;
  }
  return entry;
}

void WeightCache::Drop(Entries::iterator entry) {
  if (!(*entry)->was_found && ++num_fruitless_ == kMaxFruitless) {
    std::fprintf(
        stderr,
        "[WARNING] fastertransformer_tf: the weights lie in new buffers in every call (cast "
        "or copied in the graph?) or do not fit into the cache of %lld MiB "
        "(FT_WEIGHT_CACHE_MIB): they are prepared again and again, which is slow\n",
        static_cast<long long>(max_bytes_ >> 20));
  }
  bytes_ -= (*entry)->bytes;
  entries_.erase(entry);
}

// Makes room for `bytes` of new prepared weights; false if they are not to be kept.
bool WeightCache::MayKeep(const EncoderConfig& config, const std::vector<LayerWeights>& layers,
                          int64_t bytes) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if ((*entry)->prepared != nullptr && (*entry)->hold->IsLastOwner()) Drop(entry);
    entry = next;
  }
  if (bytes > max_bytes_) return false;
  if (num_fruitless_ >= kMaxFruitless) {
    const uint64_t fingerprint = Fingerprint(config, layers);
    if (std::find(not_kept_.begin(), not_kept_.end(), fingerprint) == not_kept_.end()) {
      not_kept_.push_back(fingerprint);
      if (not_kept_.size() > kMaxNotKept) not_kept_.pop_front();
      return false;
    }
  }
  for (auto entry = entries_.end(); bytes_ + bytes > max_bytes_ && entry != entries_.begin();) {
    --entry;
    if ((*entry)->prepared == nullptr) continue;  // under way: its thread holds it
    const auto next = std::next(entry);
    Drop(entry);
    entry = next;
  }
  return bytes_ + bytes <= max_bytes_;
}

Status WeightCache::Get(const Encoder& encoder, const WeightInputs& weights,
                        const ExecutionContext& context,
                        std::shared_ptr<const PreparedWeights>* prepared) {
  std::shared_ptr<Entry> mine;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    while (weights.hold != nullptr) {
      const auto found = Find(encoder.config(), weights.layers);
      if (found == entries_.end()) break;
      if ((*found)->prepared != nullptr) {
        (*found)->was_found = true;
        num_fruitless_ = 0;
        *prepared = (*found)->prepared;
        entries_.splice(entries_.begin(), entries_, found);
        return OkStatus();
      }
      // Another thread prepares it; where that fails the entry is gone, and this one tries.
      ready_.wait(lock);
    }
    ++num_prepared_;
    if (weights.hold != nullptr &&
        MayKeep(encoder.config(), weights.layers, encoder.PreparedWeightBytes())) {
      mine = std::make_shared<Entry>();
      mine->config = encoder.config();
      mine->layers = weights.layers;
      mine->hold = weights.hold();
      mine->bytes = encoder.PreparedWeightBytes();
      entries_.push_front(mine);
      bytes_ += mine->bytes;
    }
  }
  if (mine == nullptr) return Prepare(encoder, weights, context, prepared);
  // Without the lock: calls with other weights go on. Whatever happens, nobody waits for ever.
  Status status;
  try {
    status = Prepare(encoder, weights, context, prepared);
  } catch (...) {
    Publish(mine, nullptr);
    throw;
  }
  Publish(mine, status.ok() ? *prepared : nullptr);
  return status;
}

void WeightCache::Publish(const std::shared_ptr<Entry>& entry,
                          std::shared_ptr<const PreparedWeights> prepared) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (prepared == nullptr) {
    bytes_ -= entry->bytes;
    entries_.remove(entry);
  }
  entry->prepared = std::move(prepared);
  ready_.notify_all();
}

int64_t WeightCache::size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(entries_.size());
}

int64_t WeightCache::num_prepared() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_prepared_;
}

}  // namespace ft
