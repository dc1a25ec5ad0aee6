#include "tf_ops/cpu/encoder.h"

#include "tf_ops/core/arena.h"
#include "tf_ops/cpu/layer_steps.h"
#include "tf_ops/cpu/phases.h"
#include "tf_ops/cpu/prepared_weights.h"
#include "tf_ops/cpu/primitives/primitives.h"
#include "tf_ops/cpu/schedules.h"
#include "tf_ops/cpu/workspace.h"

namespace ft::cpu {
namespace {

class CpuEncoder : public Encoder {
 public:
  explicit CpuEncoder(const EncoderConfig& config)
      : config_(config), primitives_(GetPrimitives(config)) {}

  const EncoderConfig& config() const override { return config_; }

  int64_t PreparedWeightBytes() const override {
    Arena arena(nullptr);
    for (int64_t l = 0; l < config_.num_layers; ++l) LayOutLayer(config_, primitives_.gemm, &arena);
    return arena.used();
  }

  bool RemovesPadding() const override { return true; }

  std::string weight_layout() const override {
    const GemmPrimitives& gemm = primitives_.gemm;
    return StrCat("cpu ", primitives_.isa, " ", Name(gemm.activation), " x ", Name(gemm.weight));
  }

  Status PrepareWeights(const std::vector<LayerWeights>& layers, void* prepared,
                        const ExecutionContext& context) const override {
    FT_RETURN_IF_ERROR(ValidateWeights(config_, layers));
    return cpu::PrepareWeights(config_, primitives_.gemm, layers, prepared, context.pool);
  }

  Status WorkspaceBytes(const EncoderBatch& batch, const ExecutionContext& context,
                        int64_t* bytes) const override {
    *bytes = LayOut(batch, context, nullptr).bytes;
    return OkStatus();
  }

  Status Run(const EncoderBatch& batch, const void* prepared, void* workspace,
             const ExecutionContext& context) const override {
    FT_RETURN_IF_ERROR(ValidateBatch(config_, batch));
    if (batch.num_tokens == 0) return OkStatus();
    const Workspace w = LayOut(batch, context, workspace);
    const LayerSteps steps(config_, primitives_, batch, prepared, w);
    const int64_t num_threads = NumWorkers(*context.pool);
    Phases phases;
    phases.Add(batch.batch_size, [&](int64_t b, int) {
      steps.FindKeyLengths(b);
      steps.ClearPadding(b);
    });
    if (steps.has_input_step()) {
      phases.Add(w.num_blocks, [&](int64_t task, int) {
        const auto [row, rows] = steps.Block(task);
        steps.PrepareInput(row, rows);
      });
    }
    (w.by_rows ? ScheduleByRows : ScheduleByGrid)(steps, num_threads, &phases);
    phases.Run(context.pool);
    return OkStatus();
  }

 private:
  Workspace LayOut(const EncoderBatch& batch, const ExecutionContext& context, void* base) const {
    return LayOutWorkspace(config_, primitives_, batch, NumWorkers(*context.pool), base);
  }

  const EncoderConfig config_;
  const Primitives& primitives_;
};

}  // namespace

Status CreateCpuEncoder(const EncoderConfig& config, std::unique_ptr<Encoder>* encoder) {
  FT_RETURN_IF_ERROR(ValidateConfig(config));
  if (config.fp8_mode != 0) {
    return Unimplemented("fp8_mode is ", config.fp8_mode,
                         ": CPUs have no float8 products, expected 0; int8_mode takes the same "
                         "weights");
  }
  *encoder = std::make_unique<CpuEncoder>(config);
  return OkStatus();
}

}  // namespace ft::cpu
