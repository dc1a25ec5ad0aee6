#include "tf_ops/core/runner.h"

#include <algorithm>
#include <utility>

#include "tf_ops/core/arena.h"

namespace ft {
namespace {

// `values` where kernels can read them, for as long as they and *memory live.
Status ToDevice(const Backend& backend, const std::vector<int32_t>& values,
                const ExecutionContext& context, Buffer* memory, const int32_t** data) {
  const int64_t count = static_cast<int64_t>(values.size());
  FT_RETURN_IF_ERROR(context.allocator->Allocate(count * 4, memory));
  return backend.ToDevice(values.data(), count, static_cast<int32_t*>(memory->get()), context,
                          data);
}

}  // namespace

Status Runner::GetEncoder(int64_t inner_size, std::shared_ptr<Encoder>* encoder) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = encoders_.find(inner_size);
  if (found == encoders_.end()) {
    EncoderConfig config = config_;
    config.inner_size = inner_size;
    std::unique_ptr<Encoder> created;
    FT_RETURN_IF_ERROR(backend_->CreateEncoder(config, options_, &created));
    if (encoders_.size() >= kMaxEncoders) encoders_.clear();
    found = encoders_.emplace(inner_size, std::move(created)).first;
  }
  *encoder = found->second;
  return OkStatus();
}

Status Runner::CheckWeights(const std::vector<LayerWeights>& layers,
                            std::shared_ptr<Encoder>* encoder) {
  if (layers.empty()) return InvalidArgument("there are no layers' weights");
  const Shape& inter_kernel = layers[0].intermediate_kernel.shape;
  if (inter_kernel.size() != 2 || inter_kernel[1] < 1) {
    return InvalidArgument("inter_kernel has shape ", ShapeString(inter_kernel), ", expected [",
                           config_.hidden_size(), ",I] with I at least 1");
  }
  EncoderConfig config = config_;
  config.inner_size = inter_kernel[1];
  FT_RETURN_IF_ERROR(ValidateWeights(config, layers));
  return GetEncoder(config.inner_size, encoder);
}

Status Runner::Prepare(const WeightInputs& weights, const ExecutionContext& context,
                       PreparedEncoder* prepared) {
  FT_RETURN_IF_ERROR(CheckWeights(weights.layers, &prepared->encoder));
  return caches_->weights.Get(*prepared->encoder, weights, context, &prepared->weights);
}

bool Runner::IsStaged(const EncoderBatch& batch, bool takes_turns) const {
  // H100, 8x128: copying 1.5 MiB twice takes 5 us, launching the kernels of a layer one by one 40
  // us.
  constexpr int64_t kMaxBytes = 4 << 20;
  constexpr size_t kMaxRecent = 16;
  if (!takes_turns) return false;
  std::vector<const void*> addresses = {batch.input, batch.attention_mask};
  addresses.insert(addresses.end(), batch.outputs.begin(), batch.outputs.end());
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find(recent_.begin(), recent_.end(), addresses);
  const bool is_recent = found != recent_.end();
  if (is_recent) recent_.erase(found);
  recent_.push_front(std::move(addresses));
  if (recent_.size() > kMaxRecent) recent_.pop_back();
  const int64_t mask_elems = batch.attention_mask == nullptr
                                 ? 0
                                 : batch.batch_size * batch.max_seq_len * batch.max_seq_len;
  const int64_t bytes = batch.num_tokens * row_bytes() * (1 + batch.outputs.size()) +
                        mask_elems * SizeOf(config_.dtype);
  return !is_recent && bytes <= kMaxBytes;
}

Status Runner::RunEncoder(const PreparedEncoder& prepared, const EncoderBatch& batch,
                          void* workspace, const ExecutionContext& context) const {
  if (context.log != nullptr) {
    const std::string text = backend_->Describe(prepared.encoder->config(), batch, context);
    if (!text.empty()) context.log(text);
  }
  return prepared.encoder->Run(batch, prepared.weights->data(), workspace, context);
}

Status Runner::RunRows(const PreparedEncoder& prepared, EncoderBatch batch,
                       const std::vector<int32_t>& integers,
                       const ExecutionContext& context) const {
  const EncoderBatch given = batch;
  const int64_t bytes = batch.num_tokens * row_bytes();
  const int64_t mask_bytes =
      batch.batch_size * batch.max_seq_len * batch.max_seq_len * SizeOf(config_.dtype);
  const int64_t num_integers = static_cast<int64_t>(integers.size());
  const bool takes_turns = backend_->TakesTurns(context);
  const bool is_staged = IsStaged(batch, takes_turns);
  // A view into somebody's tensor may begin anywhere.
  const bool is_aligned = reinterpret_cast<uintptr_t>(batch.input) % backend_->row_alignment() == 0;
  int64_t workspace_bytes;
  FT_RETURN_IF_ERROR(prepared.encoder->WorkspaceBytes(batch, context, &workspace_bytes));
  void* workspace;
  int32_t* integers_memory;
  const auto lay_out = [&](void* base) {
    Arena arena(base);
    workspace = arena.Take(workspace_bytes);
    integers_memory = arena.Take<int32_t>(num_integers * 4);
    if (is_staged || !is_aligned) batch.input = arena.Take(bytes);
    if (is_staged && given.attention_mask != nullptr) batch.attention_mask = arena.Take(mask_bytes);
    for (size_t i = 0; is_staged && i < batch.outputs.size(); ++i) {
      batch.outputs[i] = arena.Take(bytes);
    }
    return arena.used();
  };
  Scratch::Turn turn;
  FT_RETURN_IF_ERROR(caches_->scratch.Take(lay_out(nullptr), takes_turns, context, &turn));
  lay_out(turn.data());
  if (num_integers > 0) {
    FT_RETURN_IF_ERROR(backend_->ToDevice(integers.data(), num_integers, integers_memory, context,
                                          batch.packed ? &batch.seq_offsets : &batch.key_lengths));
  }
  if (batch.input != given.input) {
    FT_RETURN_IF_ERROR(backend_->Copy(given.input, bytes, const_cast<void*>(batch.input), context));
  }
  if (batch.attention_mask != given.attention_mask) {
    FT_RETURN_IF_ERROR(backend_->Copy(given.attention_mask, mask_bytes,
                                      const_cast<void*>(batch.attention_mask), context));
  }
  FT_RETURN_IF_ERROR(RunEncoder(prepared, batch, workspace, context));
  for (size_t i = 0; is_staged && i < batch.outputs.size(); ++i) {
    FT_RETURN_IF_ERROR(backend_->Copy(batch.outputs[i], bytes, given.outputs[i], context));
  }
  return OkStatus();
}

Status Runner::RunWithoutPadding(const PreparedEncoder& prepared, const EncoderPlan& plan,
                                 EncoderBatch batch, const ExecutionContext& context) const {
  batch.packed = true;
  // Without a token there is nothing to run: outputs are cleared below.
  if (prepared.encoder->RemovesPadding() && plan.num_tokens > 0) {
    batch.has_padded_tensors = true;
    return RunRows(prepared, batch, plan.seq_offsets, context);
  }
  const EncoderBatch given = batch;
  batch.num_rows = backend_->RoundRows(plan.num_tokens);
  const int64_t num_integers = plan.batch_size + 1;
  int64_t workspace_bytes = 0;
  if (plan.num_tokens > 0) {
    FT_RETURN_IF_ERROR(prepared.encoder->WorkspaceBytes(batch, context, &workspace_bytes));
  }
  // The order and sizes depend on nothing but rounded sizes, so that addresses come again.
  void* workspace;
  int32_t* integers_memory;
  const auto lay_out = [&](void* base) {
    Arena arena(base);
    workspace = arena.Take(workspace_bytes);
    batch.input = arena.Take(batch.num_rows * row_bytes());
    for (void*& output : batch.outputs) output = arena.Take(batch.num_rows * row_bytes());
    integers_memory = arena.Take<int32_t>(num_integers * 4);
    return arena.used();
  };
  Scratch::Turn turn;
  FT_RETURN_IF_ERROR(
      caches_->scratch.Take(lay_out(nullptr), backend_->TakesTurns(context), context, &turn));
  lay_out(turn.data());
  FT_RETURN_IF_ERROR(backend_->ToDevice(plan.seq_offsets.data(), num_integers, integers_memory,
                                        context, &batch.seq_offsets));
  if (plan.num_tokens > 0) {
    FT_RETURN_IF_ERROR(backend_->RemovePadding(given.input, batch.seq_offsets, plan.batch_size,
                                               plan.max_seq_len, row_bytes(),
                                               const_cast<void*>(batch.input), context));
    FT_RETURN_IF_ERROR(RunEncoder(prepared, batch, workspace, context));
  }
  for (size_t i = 0; i < given.outputs.size(); ++i) {
    FT_RETURN_IF_ERROR(backend_->RebuildPadding(batch.outputs[i], batch.seq_offsets,
                                                plan.batch_size, plan.max_seq_len, row_bytes(),
                                                given.outputs[i], context));
  }
  return OkStatus();
}

Status Runner::Run(const PreparedEncoder& prepared, const EncoderInputs& inputs,
                   const EncoderPlan& plan, const std::vector<void*>& outputs,
                   const ExecutionContext& context) const {
  if (plan.batch_size * plan.max_seq_len == 0) return OkStatus();
  EncoderBatch batch;
  batch.batch_size = plan.batch_size;
  batch.max_seq_len = plan.max_seq_len;
  batch.num_tokens = plan.num_tokens;
  batch.attention_mask = plan.has_mask ? inputs.attention_mask.data : nullptr;
  batch.input = inputs.hidden_states.data;
  batch.outputs = outputs;
  if (!plan.seq_offsets.empty()) return RunWithoutPadding(prepared, plan, batch, context);
  return RunRows(prepared, batch, plan.key_lengths, context);
}

Status Runner::Run(const PreparedEncoder& prepared, const LayerInputs& inputs,
                   const LayerPlan& plan, void* output, const ExecutionContext& context) const {
  if (plan.num_tokens == 0) return OkStatus();
  EncoderBatch batch;
  batch.batch_size = plan.batch_size;
  batch.max_seq_len = plan.max_seq_len;
  batch.num_tokens = plan.num_tokens;
  batch.packed = !plan.seq_offsets.empty();
  batch.attention_mask = inputs.attention_mask.data;
  batch.input = inputs.from_tensor.data;
  batch.outputs = {output};
  return RunRows(prepared, batch, plan.seq_offsets, context);
}

Status RemovePadding(const Backend& backend, const PaddingPlan& plan, const void* padded,
                     int64_t row_bytes, void* packed, const ExecutionContext& context) {
  if (plan.num_tokens == 0 || row_bytes == 0) return OkStatus();
  Buffer memory;
  const int32_t* offsets;
  FT_RETURN_IF_ERROR(ToDevice(backend, plan.seq_offsets, context, &memory, &offsets));
  return backend.RemovePadding(padded, offsets, plan.batch_size, plan.max_seq_len, row_bytes,
                               packed, context);
}

Status RebuildPadding(const Backend& backend, const PaddingPlan& plan, const void* packed,
                      int64_t row_bytes, void* padded, const ExecutionContext& context) {
  const int64_t padded_rows = plan.batch_size * plan.max_seq_len;
  if (padded_rows == 0 || row_bytes == 0) return OkStatus();
  Buffer memory;
  const int32_t* integers;
  if (!plan.seq_offsets.empty()) {
    FT_RETURN_IF_ERROR(ToDevice(backend, plan.seq_offsets, context, &memory, &integers));
    return backend.RebuildPadding(packed, integers, plan.batch_size, plan.max_seq_len, row_bytes,
                                  padded, context);
  }
  FT_RETURN_IF_ERROR(ToDevice(backend, plan.id_offsets, context, &memory, &integers));
  return backend.ScatterRows(packed, integers, plan.num_tokens, padded_rows, row_bytes, padded,
                             context);
}

}  // namespace ft
