#include "tf_ops/cuda/encoder.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>

#include <cstdio>
#include <mutex>
#include <variant>

#include "tf_ops/cuda/attention/attention.h"
#include "tf_ops/cuda/attention/projection.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm/few_rows.h"
#include "tf_ops/cuda/gemm/gemm.h"
#include "tf_ops/cuda/gemm/tuning.h"
#include "tf_ops/cuda/graph_cache.h"
#include "tf_ops/cuda/layer_plan.h"
#include "tf_ops/cuda/norm/int8_layer_norm.h"
#include "tf_ops/cuda/norm/layer_norm.h"
#include "tf_ops/cuda/prepared_weights.h"
#include "tf_ops/cuda/rows/elementwise.h"
#include "tf_ops/cuda/rows/split_rows.h"

namespace ft {
namespace cuda {
namespace {

// Query rows of an attention kernel's block, at least, but of short sequences.
constexpr int64_t kAttentionRows = 64;

// What was tuned for one batch.
struct TunedProducts {
  std::vector<TunedGemm> gemms;
  std::vector<TunedHalfGemm> half_gemms;
  std::vector<TunedInt8Gemm> int8_gemms;
  std::vector<TunedSplitGemm> split_gemms;

  bool empty() const {
    return gemms.empty() && half_gemms.empty() && int8_gemms.empty() && split_gemms.empty();
  }

  // Keeps it in gemm_config.in, half_gemm_config.in, igemm_config.in or split_gemm_config.in, with
  // the sizes that the guide's files have.
  Status Write(const EncoderConfig& config, int64_t batch_size, int64_t seq_len,
               const std::string& config_dir) {
    const auto set_sizes = [&](auto* row) {
      row->batch_size = batch_size;
      row->seq_len = seq_len;
      row->num_heads = config.num_heads;
      row->head_size = config.head_size;
    };
    std::string environment;
    if (!gemms.empty()) {
      for (TunedGemm& row : gemms) set_sizes(&row);
      FT_RETURN_IF_ERROR(GemmEnvironment(&environment));
      FT_RETURN_IF_ERROR(UpdateGemmConfig(GemmConfigPath(config_dir), environment, gemms));
    }
    if (!half_gemms.empty()) {
      for (TunedHalfGemm& row : half_gemms) set_sizes(&row);
      FT_RETURN_IF_ERROR(HalfGemmEnvironment(&environment));
      FT_RETURN_IF_ERROR(
          UpdateHalfGemmConfig(HalfGemmConfigPath(config_dir), environment, half_gemms));
    }
    if (!int8_gemms.empty()) {
      for (TunedInt8Gemm& row : int8_gemms) set_sizes(&row);
      FT_RETURN_IF_ERROR(Int8GemmEnvironment(&environment));
      FT_RETURN_IF_ERROR(
          UpdateInt8GemmConfig(Int8GemmConfigPath(config_dir), environment, int8_gemms));
    }
    if (!split_gemms.empty()) {
      for (TunedSplitGemm& row : split_gemms) set_sizes(&row);
      FT_RETURN_IF_ERROR(SplitGemmEnvironment(&environment));
      FT_RETURN_IF_ERROR(
          UpdateSplitGemmConfig(SplitGemmConfigPath(config_dir), environment, split_gemms));
    }
    return OkStatus();
  }
};

// What computes each sort of products: the fastest that was measured, else a rule's. Any number of
// threads.
struct ProductKinds {
  explicit ProductKinds(const CudaEncoderOptions& options)
      : half(options.cublaslt_only), int8(options.plain_int8), split(options.few_rows) {}

  // Takes what was tuned for the products that a model has.
  void LoadConfig(const EncoderConfig& config, const WeightLayout& layout,
                  const std::string& directory) {
    if (config.is_quantized()) return int8.LoadConfig(directory);
    gemm.LoadConfig(directory);
    half.LoadConfig(directory);
    if (layout.has_split) split.LoadConfig(directory);
  }

  Gemm gemm;
  HalfKinds half;
  Int8Kinds int8;
  SplitKinds split;
};

// Times the products of a plan that are not tuned yet, and remembers the fastest.
Status TuneProducts(const LayerPlan& plan, const ExecutionContext& execution, ProductKinds* kinds,
                    TunedProducts* tuned) {
  std::vector<GemmShape> shapes, half_shapes;
  for (const GemmStep& step : Products<GemmStep>(plan)) {
    if (CublasLtHas(step.shape.epilogue) && !kinds->gemm.IsTuned(step.shape)) {
      shapes.push_back(step.shape);
    }
    if (IsHalf(step.shape.dtype) && !kinds->half.IsTuned(step.shape)) {
      half_shapes.push_back(step.shape);
    }
  }
  std::vector<Int8GemmArgs> int8_products;
  for (const Int8GemmStep& step : Products<Int8GemmStep>(plan)) {
    if (!step.few_rows && !kinds->int8.IsTuned(step.args)) int8_products.push_back(step.args);
  }
  std::vector<SplitGemmArgs> split_products;
  for (const SplitGemmStep& step : Products<SplitGemmStep>(plan)) {
    if (!kinds->split.IsTuned(step.args)) split_products.push_back(step.args);
  }
  FT_RETURN_IF_ERROR(TuneGemms(shapes, execution, &kinds->gemm, &tuned->gemms));
  // Beside cuBLASLt's fastest.
  FT_RETURN_IF_ERROR(
      TuneHalfGemms(half_shapes, execution, &kinds->gemm, &kinds->half, &tuned->half_gemms));
  FT_RETURN_IF_ERROR(TuneInt8Gemms(int8_products, execution, &kinds->int8, &tuned->int8_gemms));
  return TuneSplitGemms(split_products, execution, &kinds->split, &tuned->split_gemms);
}

// Attention of all sequences. With a mask that may say no more than lengths, two launches: of the
// sequences that need no mask, and of the others.
struct AttentionLaunches {
  AttentionArgs args, no_mask;
  AttentionChoice choice, no_mask_choice;

  // `out_scale`: the layer's, for integers, or null.
  Status Launch(const float* out_scale, const LaunchContext& context) const {
    if (args.mask_keys != nullptr) {
      AttentionArgs first = no_mask;
      first.out_scale = out_scale;
      FT_RETURN_IF_ERROR(LaunchAttention(first, no_mask_choice, context));
    }
    AttentionArgs last = args;
    last.out_scale = out_scale;
    return LaunchAttention(last, choice, context);
  }
};

// What a layer reads and writes.
struct LayerPlace {
  const void* input;
  const char* weights;
  void* output;              // null: nobody wants it
  bool is_last;              // of the call
  const char* next_weights;  // null in the last
};

// Puts the steps of one layer on a stream.
class StepRunner {
 public:
  StepRunner(const EncoderConfig& config, const WeightLayout& layout, const LayerPlan& plan,
             int64_t rows, char* workspace, ProductKinds* kinds, const AttentionLaunches* attention)
      : config_(config),
        layout_(layout),
        plan_(plan),
        rows_(rows),
        workspace_(workspace),
        kinds_(kinds),
        attention_(attention) {}

  // INT8 and FP8: the first layer's input, rounded.
  Status QuantizeInput(const LayerPlace& first, LaunchContext* context) {
    place_ = first;
    FT_RETURN_IF_ERROR(LaunchQuantize(config_.dtype, first.input, rows_ * config_.hidden_size(),
                                      &ScalesOf(first.weights)->input_scale,
                                      config_.product_dtype(), At(Edge::kInputIntegers), *context));
    context->overlap = context->compute_capability >= 90;
    return OkStatus();
  }

  // Split products: the split rows of the first layer's input.
  Status SplitInput(const LayerPlace& first, LaunchContext* context) {
    place_ = first;
    const int64_t h = config_.hidden_size();
    FT_RETURN_IF_ERROR(Run(SplitStep{Edge::kInput, Edge::kSplit, h, h, false}, *context));
    context->overlap = context->compute_capability >= 90;
    return OkStatus();
  }

  // Before the first layer of a call.
  Status ClearNormSums(const LaunchContext& context) const {
    if (plan_.norm_sums_bytes == 0) return OkStatus();
    FT_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(workspace_ + plan_.norm_sums, 0xff,
                                            2 * plan_.norm_sums_bytes, context.stream));
    return OkStatus();
  }

  // From the second step on, what came before the call has ended.
  Status RunLayer(const LayerPlace& place, LaunchContext* context) {
    place_ = place;
    for (const Step& step : plan_.steps) {
      FT_RETURN_IF_ERROR(std::visit([&](const auto& kind) { return Run(kind, *context); }, step));
      context->overlap = context->compute_capability >= 90;
    }
    return OkStatus();
  }

 private:
  void* At(Edge edge) const {
    if (edge == Edge::kInput) return const_cast<void*>(place_.input);
    if (edge == Edge::kOutput) return place_.output;
    return workspace_ + plan_.edges[static_cast<int>(edge)];
  }

  // A number or vector of float32 among the layer's weights, or null.
  const float* Scale(int64_t offset) const {
    return offset < 0 ? nullptr : reinterpret_cast<const float*>(place_.weights + offset);
  }

  Status Run(const GemmStep& step, const LaunchContext& context) const {
    GemmArgs args;
    args.shape = step.shape;
    args.x = At(step.input);
    args.w = place_.weights + step.kernel;
    args.bias = place_.weights + step.bias;
    args.residual = At(step.residual);
    args.output = At(step.output);
    args.workspace = workspace_ + plan_.gemm_workspace;
    return RunHalfGemm(args, kinds_->half.Choose(step.shape, context), &kinds_->gemm, context);
  }

  Status Run(const FewRowsStep& step, const LaunchContext& context) const {
    FewRowsGemmArgs args;
    args.dtype = config_.dtype;
    args.rows = rows_;
    args.n = step.n;
    args.k = step.k;
    args.x = At(step.input);
    args.w = place_.weights + step.kernel;
    args.num_splits = step.num_splits;
    if (step.output == Edge::kPartials) {
      args.partials = static_cast<float*>(At(step.output));
    } else {
      args.bias = place_.weights + step.bias;
      args.output = At(step.output);
    }
    args.has_activation = step.has_activation;
    args.activation = config_.activation;
    return LaunchFewRowsGemm(args, context);
  }

  Status Run(const ActivationStep& step, const LaunchContext& context) const {
    return LaunchActivation(config_.dtype, config_.activation, At(step.edge), rows_ * step.columns,
                            context);
  }

  Status Run(const AttentionStep&, const LaunchContext& context) const {
    return attention_->Launch(
        config_.is_quantized() ? &ScalesOf(place_.weights)->context_scale : nullptr, context);
  }

  Status Run(const AttentionProjectionStep& step, const LaunchContext& context) const {
    AttentionProjectionArgs args;
    args.attention = attention_->args;
    args.w_dtype = config_.dtype;
    if (config_.is_quantized()) {
      args.attention.out_scale = &ScalesOf(place_.weights)->context_scale;
      args.w_dtype = config_.product_dtype();
    }
    args.w = place_.weights + step.kernel;
    args.n = config_.hidden_size();
    args.rows = rows_;
    args.partials = At(Edge::kPartials);
    return LaunchAttentionProjection(args, context);
  }

  Status Run(const NormStep& step, const LaunchContext& context) const {
    LayerNormArgs args;
    args.dtype = config_.dtype;
    args.rows = rows_;
    args.hidden_size = config_.hidden_size();
    args.epsilon = config_.layernorm_epsilon;
    if (step.num_partials > 0) {
      args.partials = static_cast<const float*>(At(step.input));
      args.num_partials = step.num_partials;
      args.bias = place_.weights + step.bias;
      args.residual = At(step.residual);
    } else {
      args.input = At(step.input);
    }
    args.gamma = place_.weights + step.gamma;
    args.beta = place_.weights + step.beta;
    args.output = At(step.output);
    if (step.splits && !(step.output == Edge::kOutput && place_.is_last)) {
      args.split = At(Edge::kSplit);
      args.split_scale = static_cast<float*>(At(Edge::kSplitScale));
    }
    return LaunchLayerNorm(args, context);
  }

  Status Run(const SplitStep& step, const LaunchContext& context) const {
    SplitRowsArgs args;
    args.rows = rows_;
    args.k = step.columns;
    args.x = static_cast<const float*>(At(step.input));
    args.x_pitch = step.input_pitch;
    args.has_activation = step.has_activation;
    args.activation = config_.activation;
    args.split = At(step.output);
    args.scale = static_cast<float*>(At(Edge::kSplitScale));
    return LaunchSplitRows(args, context);
  }

  Status Run(const SplitGemmStep& step, const LaunchContext& context) const {
    SplitGemmArgs args = step.args;
    args.x = At(step.input);
    args.x_scale = static_cast<const float*>(At(Edge::kSplitScale));
    args.w = place_.weights + step.kernel;
    args.w_scale = Scale(step.scale);
    args.bias = Scale(step.bias);
    args.output = static_cast<float*>(At(step.output));
    return LaunchSplitGemm(args, kinds_->split.Choose(args, context), context);
  }

  // In device memory: for addresses alone.
  const LayerScales* ScalesOf(const char* weights) const {
    return reinterpret_cast<const LayerScales*>(weights + layout_.scales);
  }

  Status Run(const Int8GemmStep& step, const LaunchContext& context) const {
    Int8GemmArgs args = step.args;
    args.x = At(step.input);
    args.w = place_.weights + step.kernel;
    args.scale = Scale(step.scale);
    args.bias = Scale(step.bias);
    args.out_scale = Scale(step.out_scale);
    args.output = At(step.output);
    const Int8GemmKind kind =
        step.few_rows ? Int8GemmKind::kFewRows : kinds_->int8.Choose(args, context);
    return LaunchInt8Gemm(args, kind, context);
  }

  Status Run(const Int8NormStep& step, const LaunchContext& context) const {
    Int8LayerNormArgs args;
    args.dtype = config_.dtype;
    args.rows = rows_;
    args.hidden_size = config_.hidden_size();
    args.epsilon = config_.layernorm_epsilon;
    args.reads_integers = config_.quantizes_residuals();
    args.quantized_dtype = config_.product_dtype();
    if (step.num_partials > 0) {
      args.partials = At(step.input);
      args.num_partials = step.num_partials;
      args.product_scale = Scale(step.product_scale);
    } else {
      args.input = At(step.input);
    }
    args.input_unit = Scale(step.scales.input_unit);
    args.residual = At(step.residual);
    args.residual_unit = Scale(step.scales.residual_unit);
    args.bias = place_.weights + step.bias;
    args.gamma = place_.weights + step.gamma;
    args.beta = place_.weights + step.beta;
    if (step.is_last) {
      SetLayerOutput(&args);
    } else {
      args.quantized = At(Edge::kMiddleIntegers);
      args.scale = Scale(step.scales.scale);
      if (!config_.quantizes_residuals()) args.output = At(Edge::kMiddle);
    }
    return LaunchInt8LayerNorm(args, context);
  }

  Status Run(const NormGemmStep& step, const LaunchContext& context) {
    NormGemmArgs args = step.args;
    args.x = At(step.input);
    args.w = place_.weights + step.kernel;
    args.scale = Scale(step.scale);
    args.bias = place_.weights + step.bias;
    args.residual = At(step.residual);
    args.gamma = place_.weights + step.gamma;
    args.beta = place_.weights + step.beta;
    args.epsilon = config_.layernorm_epsilon;
    args.output = At(step.output);
    if (!step.is_last) {
      args.quantized = At(Edge::kMiddleIntegers);
      args.quantized_scale = Scale(step.quantized_scale);
    } else if (!place_.is_last) {
      args.quantized = At(Edge::kInputIntegers);
      args.quantized_scale = &ScalesOf(place_.next_weights)->input_scale;
    }
    if (step.kind == NormGemmKind::kGroup) {
      char* const sums = workspace_ + plan_.norm_sums;
      args.sums = sums + (norm_sums_turn_ ? plan_.norm_sums_bytes : 0);
      args.next_sums = sums + (norm_sums_turn_ ? 0 : plan_.norm_sums_bytes);
      norm_sums_turn_ = !norm_sums_turn_;
    }
    return LaunchNormGemm(args, step.kind, context);
  }

  // What a layer writes: see docs/int8.md. The next layer's input is the same tensor as this one's
  // output, so that their ranges are the same.
  void SetLayerOutput(Int8LayerNormArgs* args) const {
    args->output = At(Edge::kOutput);
    if (!place_.is_last) args->quantized = At(Edge::kInputIntegers);
    if (!config_.quantizes_residuals()) {
      if (!place_.is_last) args->scale = &ScalesOf(place_.next_weights)->input_scale;
    } else if (!place_.is_last || !config_.has_last_layer) {
      args->scale = &ScalesOf(place_.weights)->output_scale;
      args->output_unit = &ScalesOf(place_.weights)->output_unit;
    }
  }

  const EncoderConfig& config_;
  const WeightLayout& layout_;
  const LayerPlan& plan_;
  const int64_t rows_;
  char* const workspace_;
  ProductKinds* const kinds_;
  const AttentionLaunches* const attention_;
  LayerPlace place_ = {};
  bool norm_sums_turn_ = false;
};

class CudaEncoder : public Encoder {
 public:
  CudaEncoder(const EncoderConfig& config, const CudaEncoderOptions& options)
      : config_(config),
        options_(options),
        weights_(config, !options.ieee_float32 && CanSplit(config)),
        plans_(config_, weights_,
               PlanOptions{options.plain_int8 && config.is_quantized() ? 0 : options.few_rows,
                           options.cublaslt_only, options.separate_norms || options.plain_int8,
                           options.norm_kind}),
        kinds_(options),
        graphs_(options.max_graphs) {}

  const EncoderConfig& config() const override { return config_; }

  int64_t PreparedWeightBytes() const override { return config_.num_layers * weights_.layer_bytes; }

  std::string weight_layout() const override {
    return weights_.has_split ? "cuda, split too" : "cuda";
  }

  Status PrepareWeights(const std::vector<LayerWeights>& layers, void* prepared,
                        const ExecutionContext& execution) const override {
    FT_RETURN_IF_ERROR(ValidateWeights(config_, layers));
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    return cuda::PrepareWeights(config_, weights_, layers, prepared, context);
  }

  Status WorkspaceBytes(const EncoderBatch& batch, const ExecutionContext& execution,
                        int64_t* bytes) const override {
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    *bytes = plans_.Get(batch, context)->total_bytes;
    return OkStatus();
  }

  Status Run(const EncoderBatch& given, const void* prepared, void* workspace,
             const ExecutionContext& execution) const override {
    FT_RETURN_IF_ERROR(ValidateBatch(config_, given));
    if (given.num_tokens == 0) return OkStatus();
    if (given.rows() > INT32_MAX / 2) {
      return Unimplemented("num_tokens is ", given.num_tokens, "; at most ", INT32_MAX / 2);
    }
    EncoderBatch batch = given;
    // S is no more than a bound here, which gives the grid; rounded up, batches of about the same
    // length are the same work.
    if (batch.packed && batch.attention_mask == nullptr) {
      batch.max_seq_len = batch.max_seq_len <= kShortSequence
                              ? kShortSequence
                              : AlignUp(batch.max_seq_len, kAttentionRows);
    }
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    std::call_once(config_loaded_,
                   [this] { kinds_.LoadConfig(config_, weights_, options_.gemm_config_dir); });
    // Timing and graphs of our own step back where the caller captures its stream.
    cudaStreamCaptureStatus capturing;
    FT_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(context.stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone) {
      return Enqueue(batch, prepared, workspace, context);
    }
    if (options_.allow_gemm_test) FT_RETURN_IF_ERROR(TestGemms(given, execution, context));
    if (!options_.use_graphs) return Enqueue(batch, prepared, workspace, context);
    return graphs_.Run(
        GraphKey(batch, prepared, workspace, context), context,
        [&](const LaunchContext& on) { return Enqueue(batch, prepared, workspace, on); });
  }

 private:
  // Puts all layers on context.stream.
  Status Enqueue(const EncoderBatch& batch, const void* prepared, void* workspace,
                 LaunchContext context) const {
    const std::shared_ptr<const LayerPlan> made = plans_.Get(batch, context);
    const LayerPlan& plan = *made;
    char* const work = static_cast<char*>(workspace);
    AttentionLaunches attention;
    attention.args = MakeAttentionArgs(config_, batch);
    attention.args.ieee_float32 = options_.ieee_float32;
    attention.args.qkv = work + plan.edges[static_cast<int>(Edge::kQkv)];
    attention.args.output = work + plan.edges[static_cast<int>(Edge::kContext)];
    if (FindsMaskKeys(attention.args)) {
      auto* const mask_keys = reinterpret_cast<int32_t*>(work + plan.mask_keys);
      FT_RETURN_IF_ERROR(LaunchFindMaskKeys(attention.args, mask_keys, context));
      attention.args.mask_keys = mask_keys;
      attention.no_mask = attention.args;
      attention.no_mask.mask = nullptr;
      attention.no_mask_choice = SelectAttention(attention.no_mask, context);
    }
    attention.choice = SelectAttention(attention.args, context);

    StepRunner steps(config_, weights_, plan, batch.rows(), work, &kinds_, &attention);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const LayerPlace place = PlaceOf(l, batch, static_cast<const char*>(prepared));
      if (l == 0) FT_RETURN_IF_ERROR(steps.ClearNormSums(context));
      if (l == 0 && config_.is_quantized()) {
        FT_RETURN_IF_ERROR(steps.QuantizeInput(place, &context));
      } else if (l == 0 && UsesSplit(weights_, context)) {
        FT_RETURN_IF_ERROR(steps.SplitInput(place, &context));
      }
      FT_RETURN_IF_ERROR(steps.RunLayer(place, &context));
    }
    return OkStatus();
  }

  // Where there is one output, all layers write it, the last one last.
  LayerPlace PlaceOf(int64_t layer, const EncoderBatch& batch, const char* prepared) const {
    const bool has_all = batch.outputs.size() > 1;
    const auto output = [&](int64_t l) { return batch.outputs[has_all ? l : 0]; };
    LayerPlace place;
    place.input = layer == 0 ? batch.input : output(layer - 1);
    place.weights = prepared + layer * weights_.layer_bytes;
    place.output = output(layer);
    place.is_last = layer + 1 == config_.num_layers;
    place.next_weights = place.is_last ? nullptr : place.weights + weights_.layer_bytes;
    // In mode 2 layers pass integers on.
    if (config_.quantizes_residuals() && !has_all && !place.is_last) place.output = nullptr;
    return place;
  }

  // Tunes the products of this batch that are not tuned yet, for rows rounded up, so that ragged
  // batches meet few shapes.
  Status TestGemms(const EncoderBatch& batch, const ExecutionContext& execution,
                   const LaunchContext& context) const {
    EncoderBatch rounded = batch;
    rounded.num_rows = RoundRows(batch.rows());
    std::lock_guard<std::mutex> lock(test_mutex_);
    TunedProducts tuned;
    FT_RETURN_IF_ERROR(TuneProducts(*plans_.Get(rounded, context), execution, &kinds_, &tuned));
    if (tuned.empty() || options_.gemm_config_dir.empty()) return OkStatus();
    const Status written =
        tuned.Write(config_, batch.batch_size, batch.max_seq_len, options_.gemm_config_dir);
    if (!written.ok()) {
      static std::once_flag reported;
      std::call_once(reported, [&] {
        fprintf(stderr, "[WARNING] fastertransformer_tf: tuned GEMMs are used but not kept: %s\n",
                written.message().c_str());
      });
    }
    return OkStatus();
  }

  // Everything that a captured graph depends on.
  static GraphCache::Key GraphKey(const EncoderBatch& batch, const void* prepared,
                                  const void* workspace, const LaunchContext& context) {
    const auto address = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
    GraphCache::Key key = {static_cast<uint64_t>(batch.batch_size),
                           static_cast<uint64_t>(batch.max_seq_len),
                           static_cast<uint64_t>(batch.rows()),
                           batch.packed,
                           context.allow_tf32,
                           address(batch.seq_offsets),
                           address(batch.key_lengths),
                           address(batch.attention_mask),
                           address(batch.input),
                           address(prepared),
                           address(workspace)};
    for (const void* output : batch.outputs) key.push_back(address(output));
    return key;
  }

  const EncoderConfig config_;
  const CudaEncoderOptions options_;
  const WeightLayout weights_;

  // Caches only: results do not depend on them.
  mutable LayerPlans plans_;
  mutable ProductKinds kinds_;
  mutable GraphCache graphs_;
  mutable std::once_flag config_loaded_;
  mutable std::mutex test_mutex_;
};

}  // namespace

bool IeeeFloat32Requested() {
  const char* const value = getenv("FT_IEEE_FLOAT32");
  return value != nullptr && atoi(value) != 0;
}

Status CreateCudaEncoder(const EncoderConfig& config, const CudaEncoderOptions& options,
                         std::unique_ptr<Encoder>* encoder) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  *encoder = std::make_unique<CudaEncoder>(config, options);
  return OkStatus();
}

Status TuneEncoderGemms(const EncoderConfig& config, int64_t batch_size, int64_t seq_len,
                        bool allow_tf32, bool ieee_float32, const std::string& config_dir,
                        std::vector<std::string>* report) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  if (batch_size < 1 || seq_len < 1 || batch_size > INT32_MAX / 2 / seq_len) {
    return InvalidArgument("batch_size and seq_len are ", batch_size, " and ", seq_len,
                           ", expected at least 1 and a product of at most ", INT32_MAX / 2);
  }
  ExecutionContext execution;
  execution.allow_tf32 = allow_tf32;
  LaunchContext context;
  FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
  EncoderBatch batch;
  batch.batch_size = batch_size;
  batch.max_seq_len = seq_len;
  batch.num_tokens = batch_size * seq_len;
  // The products that are chosen by timing also where another kernel takes their place.
  PlanOptions options;
  options.few_rows = 0;
  options.separate_norms = true;
  const WeightLayout weights(config, !ieee_float32 && CanSplit(config));
  const LayerPlan plan = MakeLayerPlan(config, weights, batch, options, context);
  ProductKinds kinds{CudaEncoderOptions()};
  TunedProducts tuned;
  FT_RETURN_IF_ERROR(TuneProducts(plan, execution, &kinds, &tuned));
  const auto add = [report](int64_t rows, int64_t n, int64_t k, const char* name, float time,
                            const std::string& how) {
    report->push_back(StrCat("GEMM test ", report->size(), ": [M: ", rows, " K: ", k, " N: ", n,
                             "] ", name, ": ", how, " costs ", time, " ms"));
  };
  const auto gemms = Products<GemmStep>(plan);
  for (size_t i = 0; i < tuned.gemms.size(); ++i) {
    const GemmShape& shape = tuned.gemms[i].shape;
    add(shape.rows, shape.n, shape.k, gemms[i].name, tuned.gemms[i].milliseconds, "fast_algo");
  }
  const auto add_kinds = [&](const auto& rows, const auto& steps) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto& product = rows[i].product;
      add(product.rows, product.n, product.k, steps[i].name, rows[i].milliseconds,
          Name(rows[i].kind));
    }
  };
  add_kinds(tuned.half_gemms, gemms);
  add_kinds(tuned.int8_gemms, Products<Int8GemmStep>(plan));
  add_kinds(tuned.split_gemms, Products<SplitGemmStep>(plan));
  return tuned.Write(config, batch_size, seq_len, config_dir);
}

}  // namespace cuda
}  // namespace ft
