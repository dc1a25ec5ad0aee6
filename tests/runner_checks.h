// What core's Runner must do on every backend, driven with plain memory as a framework would. The
// backend's test gives a Host and reports what fails.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/reference_layer.h"
#include "tf_ops/core/runner.h"

namespace ft::runner_checks {

using reference::Doubles;

// A framework of the test: memory of the device, and where its calls run.
class Host : public Allocator {
 public:
  virtual const Backend& backend() const = 0;
  virtual ExecutionContext context() = 0;  // with this allocator
  virtual void Write(const void* from, int64_t bytes, void* to) = 0;
  virtual void Read(const void* from, int64_t bytes, void* to) = 0;  // after all work has ended

  Status Allocate(int64_t bytes, Buffer* buffer) override {
    ++num_allocations;
    if (fails_at == num_allocations) return ResourceExhausted("the test's memory is full");
    *buffer = AllocateMemory(bytes);
    return OkStatus();
  }

  int num_allocations = 0;
  int fails_at = 0;  // the allocation that fails; 0: none

 protected:
  virtual Buffer AllocateMemory(int64_t bytes) = 0;
};

// Reports one fact.
using Expect = std::function<void(bool holds, const std::string& what)>;

// float32 tensors of one model, on the device and as the reference sees them.
class Model {
 public:
  Model(Host* host, const EncoderConfig& config, unsigned seed) : config(config) {
    std::mt19937 generator(seed);
    for (int64_t l = 0; l < config.num_layers; ++l) {
      layers.emplace_back();
      weights.layers.emplace_back();
      for (int f = 0; f < kWeightsPerLayer; ++f) {
        const Shape shape = WeightShape(config, f);
        const bool is_matrix = shape.size() == 2, is_gamma = f == 9 || f == 15;
        std::normal_distribution<float> normal(
            is_gamma ? 1.f : 0.f, is_matrix ? 1.f / std::sqrt(static_cast<float>(shape[0])) : 0.1f);
        std::vector<float> values(NumElements(shape));
        for (float& value : values) value = normal(generator);
        layers.back().values[f].assign(values.begin(), values.end());
        Buffer buffer;
        if (!host->Allocate(values.size() * 4, &buffer).ok()) continue;
        host->Write(values.data(), values.size() * 4, buffer.get());
        weights.layers.back().*WeightFields()[f].view = {buffer.get(), DataType::kFloat32, shape};
        buffers.push_back(std::move(buffer));
      }
    }
    weights.hold = [this] { return std::make_unique<BufferHold>(buffers); };
  }

  const EncoderConfig config;
  std::vector<reference::Layer> layers;
  WeightInputs weights;
  std::vector<Buffer> buffers;

 private:
  class BufferHold : public WeightHold {
   public:
    explicit BufferHold(const std::vector<Buffer>& buffers) : buffers_(buffers) {}
    bool IsLastOwner() const override {
      for (const Buffer& buffer : buffers_) {
        if (buffer.use_count() == 1) return true;
      }
      return false;
    }

   private:
    const std::vector<Buffer> buffers_;
  };
};

inline EncoderConfig SmallConfig() {
  EncoderConfig config;
  config.num_heads = 2;
  config.head_size = 32;
  config.inner_size = 160;
  config.num_layers = 2;
  return config;
}

// float32 [B,S,H] on the device, `offset` bytes behind an aligned address.
struct DeviceRows {
  Buffer buffer;
  char* data;

  DeviceRows(Host* host, const std::vector<float>& values, int64_t offset = 0) {
    buffer = nullptr;
    data = nullptr;
    if (!host->Allocate(values.size() * 4 + offset, &buffer).ok()) return;
    data = static_cast<char*>(buffer.get()) + offset;
    host->Write(values.data(), values.size() * 4, data);
  }
};

// The largest difference on real rows, and on padding rows from 0 (`padding_is_zero`).
inline double Difference(const std::vector<float>& got, const Doubles& packed_expected,
                         const std::vector<int32_t>& lengths, int64_t seq_len, int64_t hidden,
                         bool padding_is_zero) {
  double worst = 0;
  int64_t at = 0;
  for (size_t b = 0; b < lengths.size(); ++b) {
    for (int64_t i = 0; i < seq_len * hidden; ++i) {
      const double value = got[b * seq_len * hidden + i];
      const bool is_real = i < lengths[b] * hidden;
      if (!is_real && !padding_is_zero) continue;
      const double difference = std::abs(value - (is_real ? packed_expected[at++] : 0.0));
      if (!(difference <= worst)) worst = difference;  // NaN stays
    }
  }
  return worst;
}

// BertEncoder: lengths of both types, masks, padding removed or not, inputs at any address.
inline void CheckEncoder(Host* host, const Expect& expect) {
  const EncoderConfig config = SmallConfig();
  const Model model(host, config, 1);
  const auto cache = std::make_shared<DeviceCaches>(int64_t{1} << 30);
  Runner runner(config, {}, &host->backend(), cache);
  const std::vector<int32_t> lengths = {5, 0, 9, 1};
  const int64_t batch_size = 4, seq_len = 9, hidden = config.hidden_size();
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(batch_size * seq_len * hidden), mask(batch_size * seq_len * seq_len);
  for (float& value : x) value = normal(generator);
  for (size_t i = 0; i < mask.size(); ++i)
    mask[i] = i % seq_len == 0 || generator() % 2 ? 1.f : 0.f;
  Doubles packed;
  for (size_t b = 0; b < lengths.size(); ++b) {
    const auto row = x.begin() + b * seq_len * hidden;
    packed.insert(packed.end(), row, row + lengths[b] * hidden);
  }
  const reference::Sequences sequences = reference::MakeSequences(seq_len, lengths, true);
  const DeviceRows device_mask(host, mask);
  for (const bool has_mask : {false, true}) {
    Doubles expected = packed;
    const Doubles mask_values(mask.begin(), mask.end());
    for (const reference::Layer& layer : model.layers) {
      expected = reference::RunLayer(expected, layer, config, sequences,
                                     has_mask ? mask_values : Doubles());
    }
    for (const bool remove_padding : {false, true}) {
      for (const bool wide : {false, true}) {
        for (const int64_t offset : {0, 4}) {
          const std::string what = StrCat("runner, mask ", has_mask, ", remove_padding ",
                                          remove_padding, ", int64 ", wide, ", offset ", offset);
          const DeviceRows rows(host, x, offset);
          const std::vector<int64_t> wide_lengths(lengths.begin(), lengths.end());
          EncoderInputs inputs;
          inputs.hidden_states = {rows.data, DataType::kFloat32, {batch_size, seq_len, hidden}};
          inputs.sequence_length = {wide ? static_cast<const void*>(wide_lengths.data())
                                         : static_cast<const void*>(lengths.data()),
                                    wide ? DataType::kInt64 : DataType::kInt32,
                                    {batch_size}};
          inputs.attention_mask = {nullptr, DataType::kFloat32, {0}};
          if (has_mask) {
            inputs.attention_mask = {
                device_mask.data, DataType::kFloat32, {batch_size, 1, seq_len, seq_len}};
          }
          inputs.remove_padding = remove_padding;
          EncoderPlan plan;
          PreparedEncoder prepared;
          const DeviceRows out(host, std::vector<float>(x.size(), NAN));
          Status status = PlanEncoder(config, inputs, &plan);
          if (status.ok()) status = runner.Prepare(model.weights, host->context(), &prepared);
          if (status.ok()) {
            status = runner.Run(prepared, inputs, plan, {out.data}, host->context());
          }
          std::vector<float> got(x.size());
          host->Read(out.data, got.size() * 4, got.data());
          const double worst = Difference(got, expected, lengths, seq_len, hidden, remove_padding);
          expect(status.ok() && worst < 3e-5, StrCat(what, ": ", worst, " ", status.message()));
        }
      }
    }
  }
  expect(cache->weights.num_prepared() == 1 && cache->weights.size() == 1,
         StrCat("weights were prepared ", cache->weights.num_prepared(), " times, expected once"));
}

// BertTransformer: one layer, padded rows under a mask and packed rows.
inline void CheckLayer(Host* host, const Expect& expect) {
  EncoderConfig config = SmallConfig();
  config.num_layers = 1;
  const Model model(host, config, 8);
  Runner runner(config, {}, &host->backend(), std::make_shared<DeviceCaches>(int64_t{1} << 30));
  const std::vector<int32_t> lengths = {3, 0, 6};
  const int64_t batch_size = 3, seq_len = 6, hidden = config.hidden_size();
  std::mt19937 generator(9);
  std::normal_distribution<float> normal;
  std::vector<float> x(batch_size * seq_len * hidden), mask(batch_size * seq_len * seq_len);
  for (float& value : x) value = normal(generator);
  for (size_t i = 0; i < mask.size(); ++i)
    mask[i] = i % seq_len == 0 || generator() % 2 ? 1.f : 0.f;
  const DeviceRows device_mask(host, mask);
  for (const bool packed : {false, true}) {
    std::vector<float> rows;
    std::vector<int32_t> ids, offsets;
    for (int32_t b = 0; b < batch_size; ++b) {
      const int32_t first = static_cast<int32_t>(rows.size() / hidden);
      if (packed) {
        offsets.push_back(first);
        ids.insert(ids.end(), lengths[b], static_cast<int32_t>(b * seq_len) - first);
      } else {
        offsets.push_back(static_cast<int32_t>(b * seq_len));
        offsets.push_back(static_cast<int32_t>(b * seq_len) + lengths[b]);
      }
      const auto begin = x.begin() + b * seq_len * hidden;
      rows.insert(rows.end(), begin, begin + (packed ? lengths[b] : seq_len) * hidden);
    }
    const int64_t tokens = rows.size() / hidden;
    offsets.push_back(static_cast<int32_t>(tokens));
    const DeviceRows input(host, rows), output(host, std::vector<float>(rows.size(), NAN));
    LayerInputs inputs;
    inputs.from_tensor = {input.data, DataType::kFloat32, {tokens, hidden}};
    inputs.to_tensor = inputs.from_tensor;
    inputs.attention_mask = {device_mask.data, DataType::kFloat32, {batch_size, seq_len, seq_len}};
    inputs.sequence_id_offset = {ids.data(), DataType::kInt32, {static_cast<int64_t>(ids.size())}};
    inputs.seqlen_offset = {
        offsets.data(), DataType::kInt32, {static_cast<int64_t>(offsets.size())}};
    inputs.remove_padding = packed;
    LayerPlan plan;
    PreparedEncoder prepared;
    Status status = PlanLayer(config, inputs, &plan);
    if (status.ok()) status = runner.Prepare(model.weights, host->context(), &prepared);
    if (status.ok()) status = runner.Run(prepared, inputs, plan, output.data, host->context());
    std::vector<float> got(rows.size());
    host->Read(output.data, got.size() * 4, got.data());
    // Padded, the mask alone decides.
    const std::vector<int32_t> all(batch_size, static_cast<int32_t>(seq_len));
    const reference::Sequences sequences =
        reference::MakeSequences(seq_len, packed ? lengths : all, packed);
    const Doubles want = reference::RunLayer(Doubles(rows.begin(), rows.end()), model.layers[0],
                                             config, sequences, Doubles(mask.begin(), mask.end()));
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = std::abs(got[i] - want[i]);
      if (!(difference <= worst)) worst = difference;  // NaN stays
    }
    expect(status.ok() && worst < 3e-5,
           StrCat("one layer, packed ", packed, ": ", worst, " ", status.message()));
  }
}

// Weights are found by their buffers, and forgotten with them.
inline void CheckWeightCache(Host* host, const Expect& expect) {
  const EncoderConfig config = SmallConfig();
  const auto cache = std::make_shared<DeviceCaches>(int64_t{1} << 30);
  Runner first(config, {}, &host->backend(), cache), second(config, {}, &host->backend(), cache);
  auto model = std::make_unique<Model>(host, config, 3);
  PreparedEncoder a, b;
  expect(first.Prepare(model->weights, host->context(), &a).ok() &&
             second.Prepare(model->weights, host->context(), &b).ok() && a.weights == b.weights &&
             cache->weights.num_prepared() == 1,
         "two runners share what one prepared");
  const Model other(host, config, 3);
  expect(first.Prepare(other.weights, host->context(), &b).ok() && a.weights != b.weights &&
             cache->weights.size() == 2,
         "other buffers are other weights");
  model.reset();
  const Model third(host, config, 4);
  expect(first.Prepare(third.weights, host->context(), &b).ok() && cache->weights.size() == 2,
         StrCat("weights whose buffers nobody holds are dropped: ", cache->weights.size()));
  // New buffers in every call: never more than the last set is kept.
  for (int i = 0; i < 20; ++i) {
    const Model fresh(host, config, 5);
    expect(first.Prepare(fresh.weights, host->context(), &b).ok() && cache->weights.size() <= 3,
           StrCat("fresh buffers, ", cache->weights.size(), " sets kept"));
  }
  // A set that comes again is kept, also after many that did not.
  const int64_t before = cache->weights.num_prepared();
  const Model last(host, config, 6);
  for (int i = 0; i < 5; ++i) {
    expect(first.Prepare(last.weights, host->context(), &b).ok(), "prepared");
  }
  expect(cache->weights.num_prepared() <= before + 2,
         StrCat("prepared ", cache->weights.num_prepared() - before, " times in 5 calls"));
  WeightInputs unkept = last.weights;
  unkept.hold = nullptr;
  const int64_t unkept_before = cache->weights.num_prepared();
  for (int i = 0; i < 2; ++i) {
    expect(first.Prepare(unkept, host->context(), &b).ok(), "prepared");
  }
  expect(cache->weights.num_prepared() == unkept_before + 2,
         "weights without a hold are prepared anew");

  // Bounded in bytes: sets of other models push out the oldest.
  PreparedEncoder size;
  const auto small = std::make_shared<DeviceCaches>(a.encoder->PreparedWeightBytes() * 2 +
                                                    a.encoder->PreparedWeightBytes() / 2);
  Runner bounded(config, {}, &host->backend(), small);
  std::vector<std::unique_ptr<Model>> models;
  for (int i = 0; i < 5; ++i) {
    models.push_back(std::make_unique<Model>(host, config, 10 + i));
    expect(bounded.Prepare(models.back()->weights, host->context(), &b).ok() &&
               small->weights.size() <= 2,
           StrCat("a cache for two sets holds ", small->weights.size()));
  }
  const auto none = std::make_shared<DeviceCaches>(0);
  Runner uncached(config, {}, &host->backend(), none);
  expect(
      uncached.Prepare(models[0]->weights, host->context(), &b).ok() && none->weights.size() == 0,
      "a cache without room keeps nothing, and the call goes on");
}

// Every allocation fails once: an error, and the next call is right.
inline void CheckFailedAllocations(Host* host, const Expect& expect) {
  const EncoderConfig config = SmallConfig();
  const Model model(host, config, 7);
  const int64_t hidden = config.hidden_size();
  const std::vector<int32_t> lengths = {3, 5};
  const DeviceRows rows(host, std::vector<float>(2 * 5 * hidden, 0.5f), 4);
  const DeviceRows out(host, std::vector<float>(2 * 5 * hidden, 0.f));
  const auto cache = std::make_shared<DeviceCaches>(int64_t{1} << 30);
  Runner runner(config, {}, &host->backend(), cache);
  const auto call = [&](bool remove_padding) {
    EncoderInputs inputs;
    inputs.hidden_states = {rows.data, DataType::kFloat32, {2, 5, hidden}};
    inputs.sequence_length = {lengths.data(), DataType::kInt32, {2}};
    inputs.attention_mask = {nullptr, DataType::kFloat32, {0}};
    inputs.remove_padding = remove_padding;
    EncoderPlan plan;
    PreparedEncoder prepared;
    FT_RETURN_IF_ERROR(PlanEncoder(config, inputs, &plan));
    FT_RETURN_IF_ERROR(runner.Prepare(model.weights, host->context(), &prepared));
    return runner.Run(prepared, inputs, plan, {out.data}, host->context());
  };
  for (const bool remove_padding : {false, true}) {
    int num_failed = 0;
    for (int i = 1; i <= 20; ++i) {
      host->num_allocations = 0;
      host->fails_at = i;
      const Status status = call(remove_padding);
      host->fails_at = 0;
      if (status.ok()) break;
      ++num_failed;
      expect(status.code() == StatusCode::kResourceExhausted, status.message());
    }
    // Later calls find memory that is kept.
    expect(num_failed >= 1 || remove_padding,
           StrCat(num_failed, " allocations of a call failed in turn"));
    expect(call(remove_padding).ok(), "the call after them is right");
  }
}

// Padding removed and rebuilt, also with ids that BuildMaskRemovePadding does not make.
inline void CheckPadding(Host* host, const Expect& expect) {
  const std::vector<int64_t> lengths = {2, 0, 4};
  const int64_t hidden = 3, seq_len = 4;
  std::vector<float> x(3 * seq_len * hidden);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i + 1.f;
  const DeviceRows rows(host, x, 4);
  PaddingPlan plan;
  Status status = PlanRemovePadding({rows.data, DataType::kFloat32, {3, seq_len, hidden}},
                                    {lengths.data(), DataType::kInt64, {3}}, &plan);
  expect(status.ok() && plan.num_tokens == 6, "plan of removal " + status.message());
  const DeviceRows packed(host, std::vector<float>(6 * hidden, NAN), 8);
  expect(RemovePadding(host->backend(), plan, rows.data, hidden * 4, packed.data, host->context())
             .ok(),
         "remove");
  for (const bool shifted : {false, true}) {
    std::vector<int32_t> ids = plan.id_offsets;
    // The last sequence's rows begin one later: rows of a layout that is no BuildMask's.
    if (shifted) ids = {1, 1, 6, 6, 6, 6};
    PaddingPlan back;
    status = PlanRebuildPadding({packed.data, DataType::kFloat32, {6, hidden}},
                                {ids.data(), DataType::kInt32, {6}},
                                {nullptr, DataType::kFloat32, {3, seq_len, seq_len}}, &back);
    expect(status.ok() && back.seq_offsets.empty() == shifted, "plan of rebuild");
    const DeviceRows rebuilt(host, std::vector<float>(x.size(), NAN));
    status = RebuildPadding(host->backend(), back, packed.data, hidden * 4, rebuilt.data,
                            host->context());
    std::vector<float> got(x.size()), expected(x.size(), 0.f);
    host->Read(rebuilt.data, got.size() * 4, got.data());
    const int64_t sources[] = {0, 1, 8, 9, 10, 11};
    for (int i = 0; i < 6; ++i) {
      std::copy_n(&x[sources[i] * hidden], hidden, &expected[(i + ids[i]) * hidden]);
    }
    expect(status.ok() && got == expected, StrCat("rebuilt, shifted ", shifted));
  }
}

inline void CheckAll(Host* host, const Expect& expect) {
  CheckEncoder(host, expect);
  CheckLayer(host, expect);
  CheckWeightCache(host, expect);
  CheckFailedAllocations(host, expect);
  CheckPadding(host, expect);
}

}  // namespace ft::runner_checks
