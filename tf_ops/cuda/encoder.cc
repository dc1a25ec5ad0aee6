#include "tf_ops/cuda/encoder.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm.h"
#include "tf_ops/cuda/graph_cache.h"
#include "tf_ops/cuda/kernels.h"
#include "tf_ops/cuda/tuning.h"

namespace ft {
namespace cuda {

namespace {

// Below this many tokens weights dominate and LaunchSmallGemm wins over cuBLASLt: H100, BERT-base,
// see benchmarks/gpu_profile.md.
constexpr int64_t kSmallGemmRows = 32;

// Query rows of an attention kernel's block, at least.
constexpr int64_t kAttentionRows = 64;

// Byte offsets of one layer's packed weights. Kernels are [out, in].
struct WeightLayout {
  int64_t qkv_kernel, qkv_bias, attention_kernel, attention_bias, attention_beta, attention_gamma,
      inner_kernel, inner_bias, output_kernel, output_bias, output_beta, output_gamma, layer_bytes;

  explicit WeightLayout(const EncoderConfig& config) {
    const int64_t h = config.hidden_size(), i = config.inner_size;
    int64_t at = 0;
    const auto take = [&](int64_t elems) {
      const int64_t offset = at;
      at += AlignUp(elems * SizeOf(config.dtype), kAlignment);
      return offset;
    };
    qkv_kernel = take(3 * h * h);
    qkv_bias = take(3 * h);
    attention_kernel = take(h * h);
    attention_bias = take(h);
    attention_beta = take(h);
    attention_gamma = take(h);
    inner_kernel = take(h * i);
    inner_bias = take(i);
    output_kernel = take(i * h);
    output_bias = take(h);
    output_beta = take(h);
    output_gamma = take(h);
    layer_bytes = at;
  }
};

// Byte offsets of the workspace. The inner activations take the place of QKV and attention output,
// which are dead by then.
struct WorkspaceLayout {
  int64_t qkv, attention, inner, sum, middle, partials, mask_keys, gemm, total_bytes;

  WorkspaceLayout(const EncoderConfig& config, const EncoderBatch& batch, int max_splits) {
    const int64_t h = config.hidden_size(), i = config.inner_size, size = SizeOf(config.dtype);
    const int64_t tokens = batch.rows();
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t offset = at;
      at += AlignUp(bytes, kAlignment);
      return offset;
    };
    const int64_t qkv_bytes = AlignUp(tokens * 3 * h * size, kAlignment);
    qkv = inner = take(std::max(qkv_bytes + tokens * h * size, tokens * i * size));
    attention = qkv + qkv_bytes;
    sum = take(tokens * h * size);
    middle = take(tokens * h * size);
    partials = take(max_splits * tokens * h * 4);
    mask_keys = take(batch.attention_mask == nullptr ? 0 : batch.batch_size * kMaskParts * 4);
    gemm = take(max_splits == 0 ? kGemmWorkspaceBytes : 0);
    total_bytes = at;
  }
};

GemmEpilogue EpilogueOf(const EncoderConfig& config) {
  // In float32 the library's GELU is too coarse for an exact result: a kernel of ours follows.
  if (config.activation == Activation::kRelu) return GemmEpilogue::kBiasRelu;
  if (config.activation == Activation::kGeluTanh && config.dtype != DataType::kFloat32) {
    return GemmEpilogue::kBiasGelu;
  }
  return GemmEpilogue::kBias;
}

// The four products of a layer.
std::vector<GemmShape> LayerGemms(const EncoderConfig& config, bool allow_tf32, int64_t tokens) {
  const int64_t h = config.hidden_size(), i = config.inner_size;
  const bool tf32 = allow_tf32 && config.dtype == DataType::kFloat32;
  return {{config.dtype, tf32, tokens, 3 * h, h, GemmEpilogue::kBias, false},
          {config.dtype, tf32, tokens, h, h, GemmEpilogue::kBias, true},
          {config.dtype, tf32, tokens, i, h, EpilogueOf(config), false},
          {config.dtype, tf32, tokens, h, i, GemmEpilogue::kBias, true}};
}

const char* const kGemmNames[] = {"QKV", "attention output", "intermediate", "output"};

// Keeps tuned products of a batch in gemm_config.in, with the sizes that the guide's file has.
Status WriteTunedGemms(const EncoderConfig& config, int64_t batch_size, int64_t seq_len,
                       const std::string& config_dir, std::vector<TunedGemm>* rows) {
  for (TunedGemm& row : *rows) {
    row.batch_size = batch_size;
    row.seq_len = seq_len;
    row.num_heads = config.num_heads;
    row.head_size = config.head_size;
  }
  std::string environment;
  FT_RETURN_IF_ERROR(GemmEnvironment(&environment));
  return UpdateGemmConfig(GemmConfigPath(config_dir), environment, *rows);
}

class CudaEncoder : public Encoder {
 public:
  CudaEncoder(const EncoderConfig& config, const CudaEncoderOptions& options)
      : config_(config), options_(options), weights_(config), graphs_(options.max_graphs) {}

  const EncoderConfig& config() const override { return config_; }

  int64_t PackedWeightBytes() const override { return config_.num_layers * weights_.layer_bytes; }

  Status PackWeights(const std::vector<LayerWeights>& layers, void* packed,
                     const ExecutionContext& execution) const override {
    FT_RETURN_IF_ERROR(ValidateWeights(config_, layers));
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    const int64_t size = SizeOf(config_.dtype);
    const int h = static_cast<int>(config_.hidden_size()), i = static_cast<int>(config_.inner_size);
    for (size_t index = 0; index < layers.size(); ++index) {
      const LayerWeights& layer = layers[index];
      char* const base = static_cast<char*>(packed) + index * weights_.layer_bytes;
      TransposeArgs transposes;
      const auto transpose = [&](const TensorView& view, int64_t offset, int rows, int cols) {
        auto& matrix = transposes.matrices[transposes.num_matrices++];
        matrix.input = view.data;
        matrix.output = base + offset;
        matrix.rows = rows;
        matrix.cols = cols;
      };
      const int64_t square = int64_t{h} * h * size;
      transpose(layer.query_kernel, weights_.qkv_kernel, h, h);
      transpose(layer.key_kernel, weights_.qkv_kernel + square, h, h);
      transpose(layer.value_kernel, weights_.qkv_kernel + 2 * square, h, h);
      transpose(layer.attention_output_kernel, weights_.attention_kernel, h, h);
      transpose(layer.intermediate_kernel, weights_.inner_kernel, h, i);
      transpose(layer.output_kernel, weights_.output_kernel, i, h);
      FT_RETURN_IF_ERROR(LaunchTranspose(transposes, static_cast<int>(size), context));
      const struct {
        const TensorView& view;
        int64_t offset;
        int64_t elems;
      } vectors[] = {{layer.query_bias, weights_.qkv_bias, h},
                     {layer.key_bias, weights_.qkv_bias + h * size, h},
                     {layer.value_bias, weights_.qkv_bias + 2 * h * size, h},
                     {layer.attention_output_bias, weights_.attention_bias, h},
                     {layer.attention_layernorm_beta, weights_.attention_beta, h},
                     {layer.attention_layernorm_gamma, weights_.attention_gamma, h},
                     {layer.intermediate_bias, weights_.inner_bias, i},
                     {layer.output_bias, weights_.output_bias, h},
                     {layer.output_layernorm_beta, weights_.output_beta, h},
                     {layer.output_layernorm_gamma, weights_.output_gamma, h}};
      for (const auto& v : vectors) {
        FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(base + v.offset, v.view.data, v.elems * size,
                                                cudaMemcpyDeviceToDevice, context.stream));
      }
    }
    return OkStatus();
  }

  Status WorkspaceBytes(const EncoderBatch& batch, const ExecutionContext& execution,
                        int64_t* bytes) const override {
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    *bytes = WorkspaceLayout(config_, batch, MaxSplits(batch.rows(), context)).total_bytes;
    return OkStatus();
  }

  Status Run(const EncoderBatch& given, const void* packed, void* workspace,
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
      batch.max_seq_len = AlignUp(batch.max_seq_len, kAttentionRows);
    }
    LaunchContext context;
    FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
    std::call_once(config_loaded_, [this] { gemm_.LoadConfig(options_.gemm_config_dir); });
    // Timing and graphs of our own step back where the caller captures its stream.
    cudaStreamCaptureStatus capturing;
    FT_RETURN_IF_CUDA_ERROR(cudaStreamIsCapturing(context.stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone) {
      return Enqueue(batch, packed, workspace, context);
    }
    if (options_.allow_gemm_test) FT_RETURN_IF_ERROR(TestGemms(batch, execution, context));
    if (!options_.use_graphs) return Enqueue(batch, packed, workspace, context);
    return graphs_.Run(GraphKey(batch, packed, workspace, context), context,
                       [&](const LaunchContext& given) {
                         return Enqueue(batch, packed, workspace, given);
                       });
  }

 private:
  // Splits of k of the two products whose sums layer norm adds up; 0: this call uses cuBLASLt.
  int MaxSplits(int64_t tokens, const LaunchContext& context) const {
    if (!UseSmallGemm(tokens, context)) return 0;
    const int64_t h = config_.hidden_size(), i = config_.inner_size;
    return std::max(SmallGemmSplits(tokens, h, h, context), SmallGemmSplits(tokens, h, i, context));
  }

  bool UseSmallGemm(int64_t tokens, const LaunchContext& context) const {
    const int64_t limit = options_.small_gemm_rows >= 0 ? options_.small_gemm_rows : kSmallGemmRows;
    if (tokens > limit) return false;
    SmallGemmArgs args;
    args.dtype = config_.dtype;
    args.rows = tokens;
    args.n = config_.hidden_size();
    args.k = config_.inner_size;
    return SmallGemmSupported(args, context) && args.n % 8 == 0 && args.k % 8 == 0;
  }

  // Puts all layers on context.stream.
  Status Enqueue(const EncoderBatch& batch, const void* packed, void* workspace,
                 LaunchContext context) const {
    const int64_t tokens = batch.rows(), h = config_.hidden_size(), i = config_.inner_size;
    const int max_splits = MaxSplits(tokens, context);
    const bool small = max_splits > 0;
    const WorkspaceLayout layout(config_, batch, max_splits);
    char* const work = static_cast<char*>(workspace);
    AttentionArgs heads = MakeAttentionArgs(config_, batch);
    heads.qkv = work + layout.qkv;
    heads.output = work + layout.attention;
    // With mask_keys a second launch computes the sequences that need no mask.
    AttentionArgs no_mask;
    AttentionChoice no_mask_attention;
    if (FindsMaskKeys(heads)) {
      auto* const mask_keys = reinterpret_cast<int32_t*>(work + layout.mask_keys);
      FT_RETURN_IF_ERROR(LaunchFindMaskKeys(heads, mask_keys, context));
      heads.mask_keys = mask_keys;
      no_mask = heads;
      no_mask.mask = nullptr;
      no_mask_attention = SelectAttention(no_mask, context);
    }
    const AttentionChoice attention = SelectAttention(heads, context);
    const std::vector<GemmShape> shapes = LayerGemms(config_, context.allow_tf32, tokens);

    // y = epilogue(x w^T + bias [+ residual]).
    const auto gemm = [&](int which, const void* x, const void* w, const void* bias,
                          const void* residual, void* y) {
      GemmArgs args;
      args.shape = shapes[which];
      args.x = x;
      args.w = w;
      args.bias = bias;
      args.residual = residual;
      args.output = y;
      args.workspace = work + layout.gemm;
      return gemm_.Run(args, context.stream);
    };
    const auto small_gemm = [&](int64_t n, int64_t k, const void* x, const void* w,
                                const void* bias, void* y, float* partials, int num_splits,
                                bool has_activation) {
      SmallGemmArgs args;
      args.dtype = config_.dtype;
      args.rows = tokens;
      args.n = n;
      args.k = k;
      args.x = x;
      args.w = w;
      args.bias = bias;
      args.output = y;
      args.partials = partials;
      args.num_splits = num_splits;
      args.has_activation = has_activation;
      args.activation = config_.activation;
      return LaunchSmallGemm(args, context);
    };

    const void* x = batch.input;
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      const char* const w = static_cast<const char*>(packed) + l * weights_.layer_bytes;
      void* const output = batch.outputs[batch.outputs.size() == 1 ? 0 : l];
      float* const partials = reinterpret_cast<float*>(work + layout.partials);

      if (small) {
        FT_RETURN_IF_ERROR(small_gemm(3 * h, h, x, w + weights_.qkv_kernel, w + weights_.qkv_bias,
                                      work + layout.qkv, nullptr, 1, false));
      } else {
        FT_RETURN_IF_ERROR(
            gemm(0, x, w + weights_.qkv_kernel, w + weights_.qkv_bias, nullptr, work + layout.qkv));
      }
      // From the second kernel on, what came before this call has ended.
      context.overlap = context.compute_capability >= 90;

      if (heads.mask_keys != nullptr) {
        FT_RETURN_IF_ERROR(LaunchAttention(no_mask, no_mask_attention, context));
      }
      FT_RETURN_IF_ERROR(LaunchAttention(heads, attention, context));

      // Both layer norms: of the split sums with bias and residual, or of the product that has
      // them.
      LayerNormArgs norm;
      norm.dtype = config_.dtype;
      norm.rows = tokens;
      norm.hidden_size = h;
      norm.epsilon = config_.layernorm_epsilon;
      const auto add_and_norm = [&](int which, int64_t k, const void* input, const char* kernel,
                                    const char* bias, const void* residual, const char* gamma,
                                    const char* beta, void* result) {
        if (small) {
          norm.num_partials = SmallGemmSplits(tokens, h, k, context);
          FT_RETURN_IF_ERROR(small_gemm(h, k, input, kernel, nullptr, nullptr, partials,
                                        norm.num_partials, false));
          norm.partials = partials;
          norm.bias = bias;
          norm.residual = residual;
        } else {
          FT_RETURN_IF_ERROR(gemm(which, input, kernel, bias, residual, work + layout.sum));
          norm.input = work + layout.sum;
        }
        norm.gamma = gamma;
        norm.beta = beta;
        norm.output = result;
        return LaunchLayerNorm(norm, context);
      };
      FT_RETURN_IF_ERROR(add_and_norm(1, h, work + layout.attention, w + weights_.attention_kernel,
                                      w + weights_.attention_bias, x, w + weights_.attention_gamma,
                                      w + weights_.attention_beta, work + layout.middle));

      if (small) {
        FT_RETURN_IF_ERROR(small_gemm(i, h, work + layout.middle, w + weights_.inner_kernel,
                                      w + weights_.inner_bias, work + layout.inner, nullptr, 1,
                                      true));
      } else {
        FT_RETURN_IF_ERROR(gemm(2, work + layout.middle, w + weights_.inner_kernel,
                                w + weights_.inner_bias, nullptr, work + layout.inner));
        if (shapes[2].epilogue == GemmEpilogue::kBias) {
          FT_RETURN_IF_ERROR(LaunchActivation(config_.dtype, config_.activation,
                                              work + layout.inner, tokens * i, context));
        }
      }
      FT_RETURN_IF_ERROR(add_and_norm(3, i, work + layout.inner, w + weights_.output_kernel,
                                      w + weights_.output_bias, work + layout.middle,
                                      w + weights_.output_gamma, w + weights_.output_beta, output));
      x = output;
    }
    return OkStatus();
  }

  // Tunes the products of this batch that are not tuned yet, for rows rounded up, so that ragged
  // batches meet few shapes.
  Status TestGemms(const EncoderBatch& batch, const ExecutionContext& execution,
                   const LaunchContext& context) const {
    const int64_t tokens = batch.rows();
    if (UseSmallGemm(tokens, context)) return OkStatus();
    std::lock_guard<std::mutex> lock(test_mutex_);
    std::vector<GemmShape> shapes;
    for (const GemmShape& shape :
         LayerGemms(config_, context.allow_tf32, RoundRows(tokens))) {
      if (!gemm_.IsTuned(shape)) shapes.push_back(shape);
    }
    std::vector<TunedGemm> rows;
    FT_RETURN_IF_ERROR(TuneGemms(shapes, execution, &gemm_, &rows));
    if (rows.empty() || options_.gemm_config_dir.empty()) return OkStatus();
    const Status written = WriteTunedGemms(config_, batch.batch_size, batch.max_seq_len,
                                           options_.gemm_config_dir, &rows);
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
  static GraphCache::Key GraphKey(const EncoderBatch& batch, const void* packed,
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
                           address(packed),
                           address(workspace)};
    for (const void* output : batch.outputs) key.push_back(address(output));
    return key;
  }

  const EncoderConfig config_;
  const CudaEncoderOptions options_;
  const WeightLayout weights_;

  // Caches only: results do not depend on them.
  mutable Gemm gemm_;
  mutable GraphCache graphs_;
  mutable std::once_flag config_loaded_;
  mutable std::mutex test_mutex_;
};

}  // namespace

Status CreateCudaEncoder(const EncoderConfig& config, const CudaEncoderOptions& options,
                         std::unique_ptr<Encoder>* encoder) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  *encoder = std::make_unique<CudaEncoder>(config, options);
  return OkStatus();
}

Status TuneEncoderGemms(const EncoderConfig& config, int64_t batch_size, int64_t seq_len,
                        bool allow_tf32, const std::string& config_dir,
                        std::vector<std::string>* report) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  if (batch_size < 1 || seq_len < 1 || batch_size > INT32_MAX / 2 / seq_len) {
    return InvalidArgument("batch_size and seq_len are ", batch_size, " and ", seq_len,
                           ", expected at least 1 and a product of at most ", INT32_MAX / 2);
  }
  const std::vector<GemmShape> shapes = LayerGemms(config, allow_tf32, batch_size * seq_len);
  Gemm gemm;
  std::vector<TunedGemm> rows;
  FT_RETURN_IF_ERROR(TuneGemms(shapes, ExecutionContext(), &gemm, &rows));
  for (size_t i = 0; i < rows.size(); ++i) {
    report->push_back(StrCat("GEMM test ", i, ": [M: ", shapes[i].rows, " K: ", shapes[i].k,
                             " N: ", shapes[i].n, "] ", kGemmNames[i], ": fast_algo costs ",
                             rows[i].milliseconds, " ms"));
  }
  return WriteTunedGemms(config, batch_size, seq_len, config_dir, &rows);
}

}  // namespace cuda
}  // namespace ft
