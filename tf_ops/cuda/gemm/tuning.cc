#include "tf_ops/cuda/gemm/tuning.h"

#include <algorithm>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {
namespace {

// As many weights as make the cache forget them.
constexpr int64_t kCacheBytes = int64_t{96} << 20;

struct Operands {
  char *workspace, *x, *y, *bias, *weights;
  int64_t weight_bytes, num_weights, total_bytes;

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
  std::vector<const void*> weights;
  for (int64_t i = 0; i < operands.num_weights; ++i) {
    weights.push_back(operands.weights + i * operands.weight_bytes);
  }
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

}  // namespace cuda
}  // namespace ft
