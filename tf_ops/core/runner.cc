#include "tf_ops/core/runner.h"

#include "tf_ops/core/arena.h"

namespace ft {

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

Status Runner::Prepare(const WeightInputs& weights, const ExecutionContext& context,
                       PreparedEncoder* prepared) {
  if (weights.layers.empty()) return InvalidArgument("there are no layers' weights");
  const Shape& inter_kernel = weights.layers[0].intermediate_kernel.shape;
  if (inter_kernel.size() != 2 || inter_kernel[1] < 1) {
    return InvalidArgument("inter_kernel has shape ", ShapeString(inter_kernel), ", expected [",
                           config_.hidden_size(), ",I] with I at least 1");
  }
  EncoderConfig config = config_;
  config.inner_size = inter_kernel[1];
  FT_RETURN_IF_ERROR(ValidateWeights(config, weights.layers));
  FT_RETURN_IF_ERROR(GetEncoder(config.inner_size, &prepared->encoder));
  return cache_->Get(*prepared->encoder, weights, context, &prepared->weights);
}

Status Runner::RunEncoder(const PreparedEncoder& prepared, EncoderBatch batch,
                          const ExecutionContext& context) const {
  const Encoder& encoder = *prepared.encoder;
  const int64_t row_bytes = config_.hidden_size() * SizeOf(config_.dtype);
  if (context.log != nullptr) {
    const std::string text = backend_->Describe(encoder.config(), batch, context);
    if (!text.empty()) context.log(text);
  }
  // A view into somebody's tensor may begin anywhere.
  Buffer aligned;
  if (reinterpret_cast<uintptr_t>(batch.input) % backend_->row_alignment() != 0) {
    const int64_t bytes = batch.num_tokens * row_bytes;
    FT_RETURN_IF_ERROR(context.allocator->Allocate(bytes, &aligned));
    FT_RETURN_IF_ERROR(backend_->Copy(batch.input, bytes, aligned.get(), context));
    batch.input = aligned.get();
  }
  int64_t workspace_bytes;
  Buffer workspace;
  FT_RETURN_IF_ERROR(encoder.WorkspaceBytes(batch, context, &workspace_bytes));
  FT_RETURN_IF_ERROR(context.allocator->Allocate(workspace_bytes, &workspace));
  return encoder.Run(batch, prepared.weights->data(), workspace.get(), context);
}

Status Runner::RunWithoutPadding(const PreparedEncoder& prepared, const EncoderPlan& plan,
                                 EncoderBatch batch, const ExecutionContext& context) const {
  const int64_t row_bytes = config_.hidden_size() * SizeOf(config_.dtype);
  const void* const padded_input = batch.input;
  const std::vector<void*> padded_outputs = batch.outputs;
  const int64_t batch_size = plan.batch_size, seq_len = plan.max_seq_len;

  Buffer integers, memory;
  FT_RETURN_IF_ERROR(backend_->ToDevice(plan.seq_offsets.data(), batch_size + 1, context, &integers,
                                        &batch.seq_offsets));
  const auto lay_out = [&](void* base) {
    Arena arena(base);
    batch.input = arena.Take(plan.num_tokens * row_bytes);
    for (void*& output : batch.outputs) output = arena.Take(plan.num_tokens * row_bytes);
    return arena.used();
  };
  FT_RETURN_IF_ERROR(context.allocator->Allocate(lay_out(nullptr), &memory));
  lay_out(memory.get());
  if (plan.num_tokens > 0) {
    FT_RETURN_IF_ERROR(backend_->PackRows(padded_input, batch.seq_offsets, batch_size, seq_len,
                                          row_bytes, const_cast<void*>(batch.input), context));
    batch.packed = true;
    FT_RETURN_IF_ERROR(RunEncoder(prepared, batch, context));
  }
  for (size_t i = 0; i < padded_outputs.size(); ++i) {
    FT_RETURN_IF_ERROR(backend_->UnpackRows(batch.outputs[i], batch.seq_offsets, batch_size, seq_len,
                                            row_bytes, padded_outputs[i], context));
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
  Buffer integers;
  if (!plan.key_lengths.empty()) {
    FT_RETURN_IF_ERROR(backend_->ToDevice(plan.key_lengths.data(), plan.batch_size, context,
                                          &integers, &batch.key_lengths));
  }
  return RunEncoder(prepared, batch, context);
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
  Buffer integers;
  if (batch.packed) {
    FT_RETURN_IF_ERROR(backend_->ToDevice(plan.seq_offsets.data(), plan.batch_size + 1, context,
                                          &integers, &batch.seq_offsets));
  }
  return RunEncoder(prepared, batch, context);
}

Status RemovePadding(const Backend& backend, const PaddingPlan& plan, const void* padded,
                     int64_t row_bytes, void* packed, const ExecutionContext& context) {
  if (plan.num_tokens == 0 || row_bytes == 0) return OkStatus();
  Buffer memory;
  const int32_t* offsets;
  FT_RETURN_IF_ERROR(backend.ToDevice(plan.seq_offsets.data(), plan.batch_size + 1, context, &memory,
                                      &offsets));
  return backend.PackRows(padded, offsets, plan.batch_size, plan.max_seq_len, row_bytes, packed,
                          context);
}

Status RebuildPadding(const Backend& backend, const PaddingPlan& plan, const void* packed,
                      int64_t row_bytes, void* padded, const ExecutionContext& context) {
  const int64_t padded_rows = plan.batch_size * plan.max_seq_len;
  if (padded_rows == 0 || row_bytes == 0) return OkStatus();
  Buffer memory;
  const int32_t* integers;
  if (!plan.seq_offsets.empty()) {
    FT_RETURN_IF_ERROR(backend.ToDevice(plan.seq_offsets.data(), plan.batch_size + 1, context,
                                        &memory, &integers));
    return backend.UnpackRows(packed, integers, plan.batch_size, plan.max_seq_len, row_bytes, padded,
                              context);
  }
  FT_RETURN_IF_ERROR(
      backend.ToDevice(plan.id_offsets.data(), plan.num_tokens, context, &memory, &integers));
  return backend.ScatterRows(packed, integers, plan.num_tokens, padded_rows, row_bytes, padded,
                             context);
}

}  // namespace ft
