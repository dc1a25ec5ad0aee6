#include "tf_ops/cuda/layer_plan.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/attention/projection.h"
#include "tf_ops/cuda/gemm/few_rows.h"
#include "tf_ops/cuda/gemm/half/half_gemm.h"
#include "tf_ops/cuda/gemm/int8/few_rows.h"
#include "tf_ops/cuda/norm/layer_norm.h"

namespace ft {
namespace cuda {
namespace {

// Up to this many rows weights dominate and kernels for few rows win over cuBLASLt's and over ours
// on Hopper, of 8 and of 16 bits: H100, BERT-base, see benchmarks/gpu_profile.md.
int64_t MaxFewRows(const EncoderConfig& config, int64_t rows, const PlanOptions& options,
                   const LaunchContext& context) {
  constexpr int64_t kOverCublasLt = 64, kOverOurs = 32;
  if (options.few_rows >= 0) return options.few_rows;
  if (config.is_quantized()) return kOverOurs;
  const GemmShape shape = {
      config.dtype,        false, rows, config.hidden_size(), config.inner_size,
      GemmEpilogue::kBias, true};
  const bool has_ours =
      !options.cublaslt_only && SelectHalfGemm(shape, context) != HalfGemmKind::kCublasLt;
  return has_ours ? kOverOurs : kOverCublasLt;
}

bool UsesFewRows(const EncoderConfig& config, int64_t rows, const PlanOptions& options,
                 const LaunchContext& context) {
  if (rows > MaxFewRows(config, rows, options, context)) return false;
  const auto is_supported = [&](int64_t n, int64_t k) {
    if (config.is_quantized()) {
      Int8GemmArgs args;
      args.input_dtype = config.product_dtype();
      args.rows = rows;
      args.n = n;
      args.k = k;
      return Int8GemmSupported(args, Int8GemmKind::kFewRows, context);
    }
    FewRowsGemmArgs args;
    args.dtype = config.dtype;
    args.rows = rows;
    args.n = n;
    args.k = k;
    return FewRowsGemmSupported(args, context);
  };
  return is_supported(config.hidden_size(), config.inner_size) &&
         is_supported(config.inner_size, config.hidden_size());
}

// Whether attention and its product are one kernel where a layer has few rows.
bool FusesProjection(const EncoderConfig& config, const EncoderBatch& batch,
                     const LaunchContext& context) {
  AttentionProjectionArgs args;
  args.attention = MakeAttentionArgs(config, batch);
  args.w_dtype = config.is_quantized() ? config.product_dtype() : config.dtype;
  args.n = config.hidden_size();
  args.rows = batch.rows();
  return AttentionProjectionSupported(args, context);
}

// Appends the steps of one layer.
class Builder {
 public:
  Builder(const EncoderConfig& config, int64_t rows, bool few_rows, const PlanOptions& options,
          const LaunchContext& context, std::vector<Step>* steps)
      : config_(config),
        rows_(rows),
        few_rows_(few_rows),
        options_(options),
        context_(context),
        steps_(steps) {}

  // The largest number of partial sums so far.
  int max_splits() const { return max_splits_; }

  // output = input x kernel + bias, or its activation.
  void Dense(const char* name, Edge input, int64_t k, Edge output, int64_t n, int64_t kernel,
             int64_t bias, bool has_activation) {
    if (few_rows_) {
      steps_->push_back(FewRowsStep{n, k, 1, has_activation, input, output, kernel, bias});
      return;
    }
    GemmShape shape = Shape(n, k, GemmEpilogue::kBias, false);
    if (has_activation) shape.epilogue = ActivationOf(shape);
    steps_->push_back(GemmStep{name, shape, input, output, input, kernel, bias});
    if (has_activation && shape.epilogue == GemmEpilogue::kBias) {
      steps_->push_back(ActivationStep{output, n});
    }
  }

  // kMiddle = LayerNorm(context of kQkv x kernel + bias + kInput), with few rows.
  void AttentionProjectionAddNorm(int64_t kernel, int64_t bias, int64_t gamma, int64_t beta) {
    const int parts = AttentionProjectionParts(config_.num_heads);
    max_splits_ = std::max(max_splits_, parts);
    steps_->push_back(AttentionProjectionStep{kernel});
    steps_->push_back(
        NormStep{Edge::kPartials, parts, Edge::kInput, Edge::kMiddle, bias, gamma, beta});
  }

  // output = LayerNorm(input x kernel + bias + residual).
  void DenseAddNorm(const char* name, Edge input, int64_t k, Edge residual, Edge output,
                    int64_t kernel, int64_t bias, int64_t gamma, int64_t beta) {
    const int64_t n = config_.hidden_size();
    NormStep norm{Edge::kSum, 0, residual, output, bias, gamma, beta};
    if (few_rows_) {
      norm.input = Edge::kPartials;
      norm.num_partials = FewRowsGemmSplits(rows_, n, k, context_);
      max_splits_ = std::max(max_splits_, norm.num_partials);
      steps_->push_back(
          FewRowsStep{n, k, norm.num_partials, false, input, Edge::kPartials, kernel, bias});
    } else {
      steps_->push_back(GemmStep{name, Shape(n, k, GemmEpilogue::kBias, true), input, Edge::kSum,
                                 residual, kernel, bias});
    }
    steps_->push_back(norm);
  }

 private:
  GemmShape Shape(int64_t n, int64_t k, GemmEpilogue epilogue, bool residual) const {
    const bool tf32 = context_.allow_tf32 && config_.dtype == DataType::kFloat32;
    return {config_.dtype, tf32, rows_, n, k, epilogue, residual};
  }

  // What the product's kernel does of the activation; kBias: nothing.
  GemmEpilogue ActivationOf(GemmShape shape) const {
    if (config_.activation == Activation::kRelu) return GemmEpilogue::kBiasRelu;
    // The GELUs of products are too coarse for an exact result: a kernel of ours follows.
    if (config_.dtype == DataType::kFloat32) return GemmEpilogue::kBias;
    if (config_.activation == Activation::kGeluTanh) return GemmEpilogue::kBiasGelu;
    shape.epilogue = GemmEpilogue::kBiasGeluErf;
    return !options_.cublaslt_only &&
                   HalfGemmSupported(shape, SelectHalfGemm(shape, context_), context_)
               ? GemmEpilogue::kBiasGeluErf
               : GemmEpilogue::kBias;
  }

  const EncoderConfig& config_;
  const int64_t rows_;
  const bool few_rows_;
  const PlanOptions& options_;
  const LaunchContext& context_;
  std::vector<Step>* const steps_;
  int max_splits_ = 0;
};

// Appends the steps of one layer of split products (gemm/split/split_gemm.h), whose input has been
// split already.
class SplitBuilder {
 public:
  SplitBuilder(const EncoderConfig& config, const WeightLayout& weights, int64_t rows,
               const LaunchContext& context, std::vector<Step>* steps)
      : config_(config), weights_(weights), rows_(rows), context_(context), steps_(steps) {}

  // The largest number of partial sums so far.
  int max_splits() const { return max_splits_; }

  void Layer() {
    const int64_t h = config_.hidden_size(), i = config_.inner_size;
    const WeightLayout& w = weights_;
    Product("QKV", Edge::kSplit, h, Edge::kQkv, 3 * h, 3 * h, w.qkv_split, w.qkv_bias);
    steps_->push_back(AttentionStep{});
    steps_->push_back(SplitStep{Edge::kContext, Edge::kSplit, h, h, false});
    SumAndNorm("attention output", Edge::kSplit, h, w.attention_split,
               {Edge::kPartials, 1, Edge::kInput, Edge::kMiddle, w.attention_bias,
                w.attention_gamma, w.attention_beta, true});
    // Its rows are as long as split ones: they are split in place.
    Product("intermediate", Edge::kSplit, h, Edge::kInner, i, SplitPitch(i), w.inner_split,
            w.inner_bias);
    steps_->push_back(SplitStep{Edge::kInner, Edge::kInner, i, SplitPitch(i), true});
    SumAndNorm("output", Edge::kInner, i, w.output_split,
               {Edge::kPartials, 1, Edge::kMiddle, Edge::kOutput, w.output_bias, w.output_gamma,
                w.output_beta, true});
  }

 private:
  void Product(const char* name, Edge input, int64_t k, Edge output, int64_t n, int64_t pitch,
               const SplitWeight& weight, int64_t bias, int num_splits = 1) {
    SplitGemmStep step = {name, {}, input, output, weight.kernel, weight.scale, bias};
    step.args.rows = rows_;
    step.args.n = n;
    step.args.k = k;
    step.args.output_pitch = pitch;
    step.args.num_splits = num_splits;
    steps_->push_back(step);
  }

  void SumAndNorm(const char* name, Edge input, int64_t k, const SplitWeight& weight,
                  NormStep norm) {
    const int64_t n = config_.hidden_size();
    norm.num_partials = SplitGemmSplits(rows_, n, k, context_);
    max_splits_ = std::max(max_splits_, norm.num_partials);
    Product(name, input, k, Edge::kPartials, n, n, weight, -1, norm.num_partials);
    steps_->push_back(norm);
  }

  const EncoderConfig& config_;
  const WeightLayout& weights_;
  const int64_t rows_;
  const LaunchContext& context_;
  std::vector<Step>* const steps_;
  int max_splits_ = 1;
};

// Whether the step is faster than a product and a layer norm; chooses its kind then.
bool ChooseNormGemm(const PlanOptions& options, const LaunchContext& context, NormGemmStep* step) {
  if (options.separate_norms) return false;
  std::optional<NormGemmKind> kind = options.norm_kind;
  if (!kind.has_value()) {
    kind = SelectNormGemm(step->args, context);
  } else if (!NormGemmSupported(step->args, context)) {
    return false;
  }
  if (kind.has_value()) step->kind = *kind;
  return kind.has_value();
}

// Appends the steps of one layer of INT8 (docs/int8.md) or FP8 (docs/fp8.md).
class Int8Builder {
 public:
  Int8Builder(const EncoderConfig& config, const WeightLayout& weights, const EncoderBatch& batch,
              const PlanOptions& options, const LaunchContext& context, std::vector<Step>* steps)
      : config_(config),
        weights_(weights),
        rows_(batch.rows()),
        few_rows_(UsesFewRows(config, rows_, options, context)),
        fuses_projection_(few_rows_ && FusesProjection(config, batch, context)),
        options_(options),
        context_(context),
        steps_(steps) {}

  // The largest number of partial sums so far.
  int max_partials() const { return max_partials_; }

  void Layer() {
    const int64_t h = config_.hidden_size(), i = config_.inner_size;
    const WeightLayout& w = weights_;
    Int8GemmStep qkv = Product("QKV", Edge::kInputIntegers, h, Edge::kQkv, 3 * h, config_.dtype);
    qkv.kernel = w.qkv_kernel;
    qkv.scale = w.qkv_scale;
    qkv.bias = w.qkv_float_bias;
    steps_->push_back(qkv);
    if (fuses_projection_) {
      steps_->push_back(AttentionProjectionStep{w.attention_kernel});
      AddUpAndNorm(AttentionProjectionParts(config_.num_heads), w.attention_scale, Norm(false));
    } else {
      steps_->push_back(AttentionStep{});
      SumAndNorm("attention output", Edge::kContext, h, w.attention_kernel, w.attention_scale,
                 Norm(false));
    }
    Int8GemmStep inner =
        Product("intermediate", Edge::kMiddleIntegers, h, Edge::kInner, i, config_.product_dtype());
    inner.args.activation = Activate();
    inner.kernel = w.inner_kernel;
    inner.scale = w.inner_scale;
    inner.bias = w.inner_float_bias;
    inner.out_scale = Number(offsetof(LayerScales, inner_scale));
    steps_->push_back(inner);
    SumAndNorm("output", Edge::kInner, i, w.output_kernel, w.output_scale, Norm(true));
  }

 private:
  int64_t Number(size_t offset) const { return weights_.scales + static_cast<int64_t>(offset); }

  Int8GemmStep Product(const char* name, Edge input, int64_t k, Edge output, int64_t n,
                       DataType dtype) const {
    Int8GemmStep step = {name, {}, few_rows_, input, output, -1, -1, -1, -1};
    step.args.rows = rows_;
    step.args.n = n;
    step.args.k = k;
    step.args.input_dtype = config_.product_dtype();
    step.args.output_dtype = dtype;
    return step;
  }

  // A coarse GELU costs another integer here and there: not more than halves keep, but float32
  // does.
  Int8Activation Activate() const {
    const bool is_exact = config_.dtype == DataType::kFloat32;
    switch (config_.activation) {
      case Activation::kGeluErf:
        return is_exact ? Int8Activation::kGeluErfExact : Int8Activation::kGeluErf;
      case Activation::kRelu:
        return Int8Activation::kRelu;
      default:
        return is_exact ? Int8Activation::kGeluTanhExact : Int8Activation::kGeluTanh;
    }
  }

  // The first or the last norm of a layer. Mode 2 reads integers.
  Int8NormStep Norm(bool is_last) const {
    const WeightLayout& w = weights_;
    Int8NormStep norm = {Edge::kSum, 0, -1, Edge::kInput, is_last, 0, 0, 0, {-1, -1, -1}};
    norm.bias = is_last ? w.output_bias : w.attention_bias;
    norm.gamma = is_last ? w.output_gamma : w.attention_gamma;
    norm.beta = is_last ? w.output_beta : w.attention_beta;
    // What the last norm multiplies by depends on the layer: StepRunner knows.
    if (!is_last) norm.scales.scale = Number(offsetof(LayerScales, norm_scale));
    if (!config_.quantizes_residuals()) {
      norm.residual = is_last ? Edge::kMiddle : Edge::kInput;
      return norm;
    }
    norm.residual = is_last ? Edge::kMiddleIntegers : Edge::kInputIntegers;
    norm.scales.input_unit = Number(is_last ? offsetof(LayerScales, product_unit)
                                            : offsetof(LayerScales, projection_unit));
    norm.scales.residual_unit =
        Number(is_last ? offsetof(LayerScales, norm_unit) : offsetof(LayerScales, input_unit));
    return norm;
  }

  void AddUpAndNorm(int num_partials, int64_t scale, Int8NormStep norm) {
    norm.input = Edge::kPartials;
    norm.num_partials = num_partials;
    norm.product_scale = scale;
    max_partials_ = std::max(max_partials_, num_partials);
    steps_->push_back(norm);
  }

  void SumAndNorm(const char* name, Edge input, int64_t k, int64_t kernel, int64_t scale,
                  const Int8NormStep& norm) {
    if (few_rows_) {
      const int64_t n = config_.hidden_size();
      Int8GemmStep sums = Product(name, input, k, Edge::kPartials, n, config_.dtype);
      sums.args.num_partials = FewRowsInt8GemmPartials(rows_, n, k, context_);
      sums.kernel = kernel;
      steps_->push_back(sums);
      AddUpAndNorm(sums.args.num_partials, scale, norm);
      return;
    }
    NormGemmStep fused = {};
    fused.args.dtype = config_.dtype;
    fused.args.input_dtype = config_.product_dtype();
    fused.args.rows = rows_;
    fused.args.n = config_.hidden_size();
    fused.args.k = k;
    fused.input = input;
    fused.residual = norm.residual;
    fused.output = norm.is_last ? Edge::kOutput : Edge::kMiddle;
    fused.kernel = kernel;
    fused.scale = scale;
    fused.bias = norm.bias;
    fused.gamma = norm.gamma;
    fused.beta = norm.beta;
    fused.is_last = norm.is_last;
    fused.quantized_scale = norm.scales.scale;
    // Mode 2 rounds what lies between the two.
    if (!config_.quantizes_residuals() && ChooseNormGemm(options_, context_, &fused)) {
      steps_->push_back(fused);
      return;
    }
    const DataType dtype = config_.quantizes_residuals() ? DataType::kInt8 : config_.dtype;
    Int8GemmStep sum = Product(name, input, k, Edge::kSum, config_.hidden_size(), dtype);
    sum.kernel = kernel;
    sum.scale = scale;
    steps_->push_back(sum);
    steps_->push_back(norm);
  }

  const EncoderConfig& config_;
  const WeightLayout& weights_;
  const int64_t rows_;
  const bool few_rows_, fuses_projection_;
  const PlanOptions& options_;
  const LaunchContext& context_;
  std::vector<Step>* const steps_;
  int max_partials_ = 0;
};

// Whether a layer norm reads what a product of its own has written to kSum.
bool UsesSum(const LayerPlan& plan) {
  return std::any_of(plan.steps.begin(), plan.steps.end(), [](const Step& step) {
    const auto* const norm = std::get_if<Int8NormStep>(&step);
    return norm != nullptr && norm->input == Edge::kSum;
  });
}

// The offsets of a plan's edges in the workspace.
class WorkspaceLayout {
 public:
  explicit WorkspaceLayout(LayerPlan* plan) : plan_(plan) {
    std::fill(std::begin(plan->edges), std::end(plan->edges), -1);
  }

  int64_t Take(int64_t bytes) {
    const int64_t offset = arena_.used();
    arena_.Take(bytes);
    return offset;
  }
  void Take(Edge edge, int64_t bytes) { At(edge) = Take(bytes); }

  // The inner activations take the place of QKV and context, which are dead by then.
  void TakeQkvContextInner(int64_t qkv_bytes, int64_t context_bytes, int64_t inner_bytes) {
    const int64_t aligned = AlignUp(qkv_bytes, kAlignment);
    At(Edge::kQkv) = At(Edge::kInner) = Take(std::max(aligned + context_bytes, inner_bytes));
    At(Edge::kContext) = At(Edge::kQkv) + aligned;
  }

  // What kGroup steps exchange, where there are such.
  void TakeNormSums(int64_t rows) {
    for (const Step& step : plan_->steps) {
      const auto* const fused = std::get_if<NormGemmStep>(&step);
      if (fused == nullptr || fused->kind != NormGemmKind::kGroup) continue;
      plan_->norm_sums_bytes = AlignUp(NormSumsBytes(rows), kAlignment);
      plan_->norm_sums = Take(2 * plan_->norm_sums_bytes);
      return;
    }
  }

  int64_t bytes() const { return arena_.used(); }

 private:
  int64_t& At(Edge edge) { return plan_->edges[static_cast<int>(edge)]; }

  LayerPlan* const plan_;
  Arena arena_{nullptr};
};

LayerPlan MakeInt8Plan(const EncoderConfig& config, const WeightLayout& weights,
                       const EncoderBatch& batch, int64_t mask_bytes, const PlanOptions& options,
                       const LaunchContext& context) {
  const int64_t h = config.hidden_size(), size = SizeOf(config.dtype), rows = batch.rows();
  const bool mode2 = config.quantizes_residuals();
  LayerPlan plan;
  Int8Builder builder(config, weights, batch, options, context, &plan.steps);
  builder.Layer();
  WorkspaceLayout layout(&plan);
  layout.TakeQkvContextInner(rows * 3 * h * size, rows * h, rows * config.inner_size);
  layout.Take(Edge::kInputIntegers, rows * h);
  layout.Take(Edge::kMiddleIntegers, rows * h);
  if (!mode2) layout.Take(Edge::kMiddle, rows * h * size);
  if (UsesSum(plan)) layout.Take(Edge::kSum, rows * h * (mode2 ? 1 : size));
  layout.Take(Edge::kPartials, builder.max_partials() * rows * h * 4);
  layout.TakeNormSums(rows);
  plan.mask_keys = layout.Take(mask_bytes);
  plan.gemm_workspace = layout.Take(0);
  plan.total_bytes = layout.bytes();
  return plan;
}

LayerPlan MakeSplitPlan(const EncoderConfig& config, const WeightLayout& weights, int64_t rows,
                        int64_t mask_bytes, const LaunchContext& context) {
  const int64_t h = config.hidden_size(), size = SizeOf(config.dtype);
  LayerPlan plan;
  SplitBuilder builder(config, weights, rows, context, &plan.steps);
  builder.Layer();
  WorkspaceLayout layout(&plan);
  layout.TakeQkvContextInner(rows * 3 * h * size, rows * h * size,
                             rows * SplitPitch(config.inner_size) * size);
  layout.Take(Edge::kMiddle, rows * h * size);
  layout.Take(Edge::kPartials, builder.max_splits() * rows * h * 4);
  layout.Take(Edge::kSplit, rows * SplitPitch(h) * 4);
  layout.Take(Edge::kSplitScale, rows * 4);
  plan.mask_keys = layout.Take(mask_bytes);
  plan.gemm_workspace = layout.Take(0);
  plan.total_bytes = layout.bytes();
  return plan;
}

bool IsSplitDevice(int device) {
  int major = 0, minor = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major * 10 + minor == kSplitCapability;
}

}  // namespace

bool CanSplit(const EncoderConfig& config) {
  if (config.dtype != DataType::kFloat32 || config.is_quantized() ||
      !SplitSizesSupported(config.hidden_size(), config.inner_size) ||
      !LayerNormSplits(config.hidden_size())) {
    return false;
  }
  // Without a device or a driver there is none; a call then says what is wrong.
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  for (int device = 0; device < count; ++device) {
    if (IsSplitDevice(device)) return true;
  }
  return false;
}

bool UsesSplit(const WeightLayout& weights, const LaunchContext& context) {
  return weights.has_split && !context.allow_tf32 && context.compute_capability == kSplitCapability;
}

LayerPlan MakeLayerPlan(const EncoderConfig& config, const WeightLayout& weights,
                        const EncoderBatch& batch, const PlanOptions& options,
                        const LaunchContext& context) {
  const int64_t h = config.hidden_size(), i = config.inner_size, rows = batch.rows();
  const int64_t mask_bytes =
      batch.attention_mask == nullptr ? 0 : batch.batch_size * kMaskParts * 4;
  if (config.is_quantized()) {
    return MakeInt8Plan(config, weights, batch, mask_bytes, options, context);
  }
  if (UsesSplit(weights, context)) {
    return MakeSplitPlan(config, weights, rows, mask_bytes, context);
  }
  // In float32 that kernel takes split rows alone.
  const bool few_rows =
      config.dtype != DataType::kFloat32 && UsesFewRows(config, rows, options, context);
  LayerPlan plan;
  Builder builder(config, rows, few_rows, options, context, &plan.steps);
  builder.Dense("QKV", Edge::kInput, h, Edge::kQkv, 3 * h, weights.qkv_kernel, weights.qkv_bias,
                false);
  if (few_rows && FusesProjection(config, batch, context)) {
    builder.AttentionProjectionAddNorm(weights.attention_kernel, weights.attention_bias,
                                       weights.attention_gamma, weights.attention_beta);
  } else {
    plan.steps.push_back(AttentionStep{});
    builder.DenseAddNorm("attention output", Edge::kContext, h, Edge::kInput, Edge::kMiddle,
                         weights.attention_kernel, weights.attention_bias, weights.attention_gamma,
                         weights.attention_beta);
  }
  builder.Dense("intermediate", Edge::kMiddle, h, Edge::kInner, i, weights.inner_kernel,
                weights.inner_bias, true);
  builder.DenseAddNorm("output", Edge::kInner, i, Edge::kMiddle, Edge::kOutput,
                       weights.output_kernel, weights.output_bias, weights.output_gamma,
                       weights.output_beta);

  const int64_t size = SizeOf(config.dtype);
  WorkspaceLayout layout(&plan);
  layout.TakeQkvContextInner(rows * 3 * h * size, rows * h * size, rows * i * size);
  layout.Take(Edge::kMiddle, rows * h * size);
  if (few_rows) {
    layout.Take(Edge::kPartials, builder.max_splits() * rows * h * 4);
  } else {
    layout.Take(Edge::kSum, rows * h * size);
  }
  plan.mask_keys = layout.Take(mask_bytes);
  plan.gemm_workspace = layout.Take(few_rows ? 0 : kGemmWorkspaceBytes);
  plan.total_bytes = layout.bytes();
  return plan;
}

std::shared_ptr<const LayerPlan> LayerPlans::Get(const EncoderBatch& batch,
                                                 const LaunchContext& context) {
  constexpr size_t kMaxPlans = 1024;
  const Key key = {batch.rows(), batch.attention_mask == nullptr ? -1 : batch.batch_size,
                   FusesProjection(config_, batch, context), context.allow_tf32, context.device};
  std::lock_guard<std::mutex> lock(mutex_);
  if (plans_.size() >= kMaxPlans) plans_.clear();
  std::shared_ptr<const LayerPlan>& plan = plans_[key];
  if (plan == nullptr) {
    plan = std::make_shared<LayerPlan>(MakeLayerPlan(config_, weights_, batch, options_, context));
  }
  return plan;
}

}  // namespace cuda
}  // namespace ft
