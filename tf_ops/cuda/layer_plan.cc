#include "tf_ops/cuda/layer_plan.h"

#include <algorithm>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/gemm/few_rows.h"

namespace ft {
namespace cuda {
namespace {

// Below this many rows weights dominate and LaunchFewRowsGemm wins over cuBLASLt: H100, BERT-base,
// see benchmarks/gpu_profile.md.
constexpr int64_t kFewRows = 32;

bool UsesFewRows(const EncoderConfig& config, int64_t rows, const PlanOptions& options,
                 const LaunchContext& context) {
  if (rows > (options.few_rows >= 0 ? options.few_rows : kFewRows)) return false;
  FewRowsGemmArgs args;
  args.dtype = config.dtype;
  args.rows = rows;
  args.n = config.hidden_size();
  args.k = config.inner_size;
  return FewRowsGemmSupported(args, context);
}

// What cuBLASLt's epilogue does of the activation.
GemmEpilogue EpilogueOf(const EncoderConfig& config) {
  // In float32 the library's GELU is too coarse for an exact result: a kernel of ours follows.
  if (config.activation == Activation::kRelu) return GemmEpilogue::kBiasRelu;
  if (config.activation == Activation::kGeluTanh && config.dtype != DataType::kFloat32) {
    return GemmEpilogue::kBiasGelu;
  }
  return GemmEpilogue::kBias;
}

// Appends the steps of one layer.
class Builder {
 public:
  Builder(const EncoderConfig& config, int64_t rows, bool few_rows, const LaunchContext& context,
          std::vector<Step>* steps)
      : config_(config), rows_(rows), few_rows_(few_rows), context_(context), steps_(steps) {}

  // The largest number of partial sums so far.
  int max_splits() const { return max_splits_; }

  // output = input x kernel + bias, or its activation.
  void Dense(const char* name, Edge input, int64_t k, Edge output, int64_t n, int64_t kernel,
             int64_t bias, bool has_activation) {
    if (few_rows_) {
      steps_->push_back(FewRowsStep{n, k, 1, has_activation, input, output, kernel, bias});
      return;
    }
    const GemmEpilogue epilogue = has_activation ? EpilogueOf(config_) : GemmEpilogue::kBias;
    steps_->push_back(
        GemmStep{name, Shape(n, k, epilogue, false), input, output, input, kernel, bias});
    if (has_activation && epilogue == GemmEpilogue::kBias) {
      steps_->push_back(ActivationStep{output, n});
    }
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

  const EncoderConfig& config_;
  const int64_t rows_;
  const bool few_rows_;
  const LaunchContext& context_;
  std::vector<Step>* const steps_;
  int max_splits_ = 0;
};

}  // namespace

LayerPlan MakeLayerPlan(const EncoderConfig& config, const WeightLayout& weights,
                        const EncoderBatch& batch, const PlanOptions& options,
                        const LaunchContext& context) {
  const int64_t h = config.hidden_size(), i = config.inner_size, rows = batch.rows();
  const bool few_rows = UsesFewRows(config, rows, options, context);
  LayerPlan plan;
  Builder builder(config, rows, few_rows, context, &plan.steps);
  builder.Dense("QKV", Edge::kInput, h, Edge::kQkv, 3 * h, weights.qkv_kernel, weights.qkv_bias,
                false);
  plan.steps.push_back(AttentionStep{});
  builder.DenseAddNorm("attention output", Edge::kContext, h, Edge::kInput, Edge::kMiddle,
                       weights.attention_kernel, weights.attention_bias, weights.attention_gamma,
                       weights.attention_beta);
  builder.Dense("intermediate", Edge::kMiddle, h, Edge::kInner, i, weights.inner_kernel,
                weights.inner_bias, true);
  builder.DenseAddNorm("output", Edge::kInner, i, Edge::kMiddle, Edge::kOutput,
                       weights.output_kernel, weights.output_bias, weights.output_gamma,
                       weights.output_beta);

  const int64_t size = SizeOf(config.dtype);
  Arena arena(nullptr);
  const auto take = [&](int64_t bytes) {
    const int64_t offset = arena.used();
    arena.Take(bytes);
    return offset;
  };
  std::fill(std::begin(plan.edges), std::end(plan.edges), -1);
  const auto edge = [&](Edge e) -> int64_t& { return plan.edges[static_cast<int>(e)]; };
  // The inner activations take the place of QKV and context, which are dead by then.
  const int64_t qkv_bytes = AlignUp(rows * 3 * h * size, kAlignment);
  edge(Edge::kQkv) = edge(Edge::kInner) =
      take(std::max(qkv_bytes + rows * h * size, rows * i * size));
  edge(Edge::kContext) = edge(Edge::kQkv) + qkv_bytes;
  edge(Edge::kMiddle) = take(rows * h * size);
  if (few_rows) {
    edge(Edge::kPartials) = take(builder.max_splits() * rows * h * 4);
  } else {
    edge(Edge::kSum) = take(rows * h * size);
  }
  plan.mask_keys = take(batch.attention_mask == nullptr ? 0 : batch.batch_size * kMaskParts * 4);
  plan.gemm_workspace = take(few_rows ? 0 : kGemmWorkspaceBytes);
  plan.total_bytes = arena.used();
  return plan;
}

std::shared_ptr<const LayerPlan> LayerPlans::Get(const EncoderBatch& batch,
                                                 const LaunchContext& context) {
  constexpr size_t kMaxPlans = 1024;
  const Key key = {batch.rows(), batch.attention_mask == nullptr ? -1 : batch.batch_size,
                   context.allow_tf32, context.device};
  std::lock_guard<std::mutex> lock(mutex_);
  if (plans_.size() >= kMaxPlans) plans_.clear();
  std::shared_ptr<const LayerPlan>& plan = plans_[key];
  if (plan == nullptr) {
    plan = std::make_shared<LayerPlan>(MakeLayerPlan(config_, weights_, batch, options_, context));
  }
  return plan;
}

std::vector<GemmStep> GemmSteps(const LayerPlan& plan) {
  std::vector<GemmStep> gemms;
  for (const Step& step : plan.steps) {
    if (const auto* gemm = std::get_if<GemmStep>(&step)) gemms.push_back(*gemm);
  }
  return gemms;
}

}  // namespace cuda
}  // namespace ft
