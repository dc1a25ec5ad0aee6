#include "tf_ops/cuda/gemm/tuning.h"

#include <algorithm>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm/timing.h"

namespace ft {
namespace cuda {
namespace {

// As many weights as make the cache forget them.
constexpr int64_t kCacheBytes = int64_t{96} << 20;

struct Operands {
  char *workspace, *x, *y, *bias, *weights;
  int64_t weight_bytes, num_weights, total_bytes;

  std::vector<const void*> Weights() const {
    std::vector<const void*> all;
    for (int64_t i = 0; i < num_weights; ++i) all.push_back(weights + i * weight_bytes);
    return all;
  }

  Operands(const std::vector<GemmShape>& shapes, void* base) {
    int64_t x_bytes = 0, y_bytes = 0, bias_bytes = 0;
    weight_bytes = 0;
    for (const GemmShape& s : shapes) {
      const int64_t size = SizeOf(s.dtype);
      // The residual is read from x.
      x_bytes = std::max({x_bytes, s.rows * s.k * size, s.rows * s.n * size});
      y_bytes = std::max(y_bytes, s.rows * s.n * size);
      bias_bytes = std::max(bias_bytes, s.n * size);
      weight_bytes = std::max(weight_bytes, AlignUp(s.n * s.k * size, kAlignment));
    }
    num_weights = kCacheBytes / weight_bytes + 1;
    Arena arena(base);
    workspace = arena.Take<char>(kGemmWorkspaceBytes);
    x = arena.Take<char>(x_bytes);
    y = arena.Take<char>(y_bytes);
    bias = arena.Take<char>(bias_bytes);
    weights = arena.Take<char>(weight_bytes * num_weights);
    total_bytes = arena.used();
  }
};

Status Allocate(int64_t bytes, const ExecutionContext& execution, Buffer* buffer) {
  if (execution.allocator != nullptr) return execution.allocator->Allocate(bytes, buffer);
  size_t free_bytes, total_bytes;
  FT_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (free_bytes < static_cast<size_t>(bytes) + (10 << 20)) {
    return ResourceExhausted("There is no enough device memory for gemm test! It needs ", bytes,
                             " bytes, ", free_bytes, " are free");
  }
  void* memory;
  FT_RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, bytes));
  *buffer = Buffer(memory, [](void* pointer) { cudaFree(pointer); });
  return OkStatus();
}

// Random numbers: a product of zeros runs faster than a real one.
Status FillRandom(char* memory, int64_t bytes, cudaStream_t stream) {
  std::vector<uint16_t> random(1 << 20);
  uint32_t state = 1;
  for (uint16_t& r : random) {
    state = state * 1664525u + 1013904223u;
    // As float16 or bfloat16, and as the halves of a float32, numbers of small magnitude.
    r = static_cast<uint16_t>((state >> 16 & 0x83ffu) | 0x2c00u);
  }
  const int64_t block = static_cast<int64_t>(random.size()) * 2;
  for (int64_t at = 0; at < bytes; at += block) {
    FT_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(memory + at, random.data(), std::min(block, bytes - at),
                                            cudaMemcpyHostToDevice, stream));
  }
  FT_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  return OkStatus();
}

}  // namespace

Status TuneGemms(const std::vector<GemmShape>& shapes, const ExecutionContext& execution,
                 Gemm* gemm, std::vector<TunedGemm>* rows) {
  if (shapes.empty()) return OkStatus();
  const auto stream = static_cast<cudaStream_t>(execution.stream);
  Buffer memory;
  FT_RETURN_IF_ERROR(Allocate(Operands(shapes, nullptr).total_bytes, execution, &memory));
  const Operands operands(shapes, memory.get());
  FT_RETURN_IF_ERROR(FillRandom(operands.workspace, operands.total_bytes, stream));
  const std::vector<const void*> weights = operands.Weights();
  for (const GemmShape& shape : shapes) {
    GemmArgs args;
    args.shape = shape;
    args.x = operands.x;
    args.w = weights[0];
    args.bias = operands.bias;
    args.residual = operands.x;
    args.output = operands.y;
    args.workspace = operands.workspace;
    TunedGemm row;
    FT_RETURN_IF_ERROR(gemm->Tune(args, weights, stream, &row));
    rows->push_back(row);
  }
  return OkStatus();
}

Status TuneInt8Gemms(const std::vector<Int8GemmArgs>& products, const ExecutionContext& execution,
                     Int8Kinds* kinds, std::vector<TunedInt8Gemm>* rows) {
  if (products.empty()) return OkStatus();
  LaunchContext context;
  FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
  // The same operands as of float32 products, which are larger; numbers of any bits will do.
  std::vector<GemmShape> shapes;
  for (const Int8GemmArgs& p : products) {
    GemmShape shape;
    shape.rows = p.rows;
    shape.n = p.n;
    shape.k = p.k;
    shapes.push_back(shape);
  }
  Buffer memory;
  FT_RETURN_IF_ERROR(Allocate(Operands(shapes, nullptr).total_bytes, execution, &memory));
  const Operands operands(shapes, memory.get());
  FT_RETURN_IF_ERROR(FillRandom(operands.workspace, operands.total_bytes, context.stream));
  const std::vector<const void*> weights = operands.Weights();
  LaunchTimer timer;
  FT_RETURN_IF_ERROR(timer.Init(context.stream));
  for (const Int8GemmArgs& product : products) {
    Int8GemmArgs args = product;
    args.x = reinterpret_cast<const int8_t*>(operands.x);
    args.scale = args.bias = reinterpret_cast<const float*>(operands.bias);
    args.output = operands.y;
    TunedInt8Gemm row;
    row.product = product;
    row.milliseconds = -1.f;
    for (int kind = 0; kind < kNumInt8GemmKinds; ++kind) {
      const auto int8_kind = static_cast<Int8GemmKind>(kind);
      if (!Int8GemmSupported(product, int8_kind, context)) continue;
      const auto launch = [&](int run, cudaStream_t stream) {
        args.w = static_cast<const int8_t*>(weights[run % weights.size()]);
        LaunchContext on = context;
        on.stream = stream;
        on.overlap = run > 0 && context.compute_capability >= 90;  // as between a layer's steps
        return LaunchInt8Gemm(args, int8_kind, on);
      };
      float milliseconds;
      // What a first launch prepares is not for a capture.
      FT_RETURN_IF_ERROR(launch(0, timer.stream()));
      FT_RETURN_IF_ERROR(timer.Time(launch, TimedRuns(weights.size()), &milliseconds));
      if (row.milliseconds < 0.f || milliseconds < row.milliseconds) {
        row.milliseconds = milliseconds;
        row.kind = int8_kind;
      }
    }
    kinds->Keep(row);
    rows->push_back(row);
  }
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
