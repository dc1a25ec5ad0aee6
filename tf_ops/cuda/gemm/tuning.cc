#include "tf_ops/cuda/gemm/tuning.h"

#include <algorithm>
#include <memory>

#include "tf_ops/core/arena.h"
#include "tf_ops/cuda/cuda_check.h"
#include "tf_ops/cuda/gemm/timing.h"

namespace ft {
namespace cuda {
namespace {

// As many weights as make the cache forget them.
constexpr int64_t kCacheBytes = int64_t{96} << 20;

// What one product reads and writes.
struct OperandBytes {
  int64_t x, y, bias, weights;
};

struct Operands {
  char *workspace, *x, *y, *bias, *weights;
  int64_t weight_bytes, num_weights, total_bytes;

  std::vector<const void*> Weights() const {
    std::vector<const void*> all;
    for (int64_t i = 0; i < num_weights; ++i) all.push_back(weights + i * weight_bytes);
    return all;
  }

  // For each of the products.
  Operands(const std::vector<OperandBytes>& products, void* base) {
    OperandBytes most = {0, 0, 0, 0};
    for (const OperandBytes& product : products) {
      most.x = std::max(most.x, product.x);
      most.y = std::max(most.y, product.y);
      most.bias = std::max(most.bias, product.bias);
      most.weights = std::max(most.weights, product.weights);
    }
    weight_bytes = AlignUp(most.weights, kAlignment);
    num_weights = kCacheBytes / weight_bytes + 1;
    Arena arena(base);
    workspace = arena.Take<char>(kGemmWorkspaceBytes);
    x = arena.Take<char>(most.x);
    y = arena.Take<char>(most.y);
    bias = arena.Take<char>(most.bias);
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

// Operands in memory of their own, full of random numbers.
Status MakeOperands(const std::vector<OperandBytes>& products, const ExecutionContext& execution,
                    Buffer* memory, std::unique_ptr<Operands>* operands) {
  FT_RETURN_IF_ERROR(Allocate(Operands(products, nullptr).total_bytes, execution, memory));
  *operands = std::make_unique<Operands>(products, memory->get());
  return FillRandom((*operands)->workspace, (*operands)->total_bytes,
                    static_cast<cudaStream_t>(execution.stream));
}

// What TuneKinds knows of products of integers; numbers of any bits will do.
struct Int8Products {
  using Row = TunedInt8Gemm;
  static constexpr int kNumKinds = kNumInt8GemmKinds;

  static OperandBytes Bytes(const Int8GemmArgs& p) {
    return {p.rows * p.k, p.rows * p.n * 4, p.n * 4, p.n * p.k};
  }
  static Int8GemmArgs MakeArgs(const Int8GemmArgs& product, const Operands& operands) {
    Int8GemmArgs args = product;
    args.x = operands.x;
    args.scale = args.bias = reinterpret_cast<const float*>(operands.bias);
    args.output = operands.y;
    return args;
  }
  static Status Launch(const Int8GemmArgs& args, Int8GemmKind kind, const LaunchContext& context) {
    return LaunchInt8Gemm(args, kind, context);
  }
  static bool IsSupported(const Int8GemmArgs& args, Int8GemmKind kind,
                          const LaunchContext& context) {
    // A layer has kFewRows for all its products or for none (layer_plan.cc).
    return kind != Int8GemmKind::kFewRows && Int8GemmSupported(args, kind, context);
  }
  static std::string Describe(const Int8GemmArgs& p) {
    return StrCat(Name(p.input_dtype), " ", p.rows, "x", p.k, "x", p.n);
  }
};

// The same of split products.
struct SplitProducts {
  using Row = TunedSplitGemm;
  static constexpr int kNumKinds = kNumSplitGemmKinds;

  static OperandBytes Bytes(const SplitGemmArgs& p) {
    const int64_t row = SplitPitch(p.k) * 4;
    return {p.rows * row, p.num_splits * p.rows * p.output_pitch * 4, std::max(p.rows, p.n) * 4,
            p.n * row};
  }
  static SplitGemmArgs MakeArgs(const SplitGemmArgs& product, const Operands& operands) {
    SplitGemmArgs args = product;
    args.x = operands.x;
    args.x_scale = args.w_scale = reinterpret_cast<const float*>(operands.bias);
    if (args.num_splits == 1) args.bias = args.w_scale;
    args.output = reinterpret_cast<float*>(operands.y);
    return args;
  }
  static Status Launch(const SplitGemmArgs& args, SplitGemmKind kind,
                       const LaunchContext& context) {
    return LaunchSplitGemm(args, kind, context);
  }
  static bool IsSupported(const SplitGemmArgs& args, SplitGemmKind kind,
                          const LaunchContext& context) {
    // Launches one after the other, as here, flatter kFewRows where a product is in parts: in a
    // layer of more rows it was slower than what lost here (benchmarks/gpu_profile.md).
    if (kind == SplitGemmKind::kFewRows && args.num_splits > 1 && args.rows > kMaxSplitFewRows) {
      return false;
    }
    return SplitGemmSupported(args, kind, context);
  }
  static std::string Describe(const SplitGemmArgs& p) {
    return StrCat("split ", p.rows, "x", p.k, "x", p.n);
  }
};

// Of cuBLASLt's and our products of float16 and bfloat16 alike.
OperandBytes GemmBytes(const GemmShape& s) {
  const int64_t size = SizeOf(s.dtype);
  // The residual is read from x.
  return {s.rows * std::max(s.k, s.n) * size, s.rows * s.n * size, s.n * size, s.n * s.k * size};
}

GemmArgs MakeGemmArgs(const GemmShape& shape, const Operands& operands) {
  GemmArgs args;
  args.shape = shape;
  args.x = operands.x;
  args.bias = operands.bias;
  args.residual = operands.x;
  args.output = operands.y;
  args.workspace = operands.workspace;
  return args;
}

// The same of products of float16 and bfloat16.
struct HalfProducts {
  using Row = TunedHalfGemm;
  static constexpr int kNumKinds = kNumHalfGemmKinds;

  static OperandBytes Bytes(const GemmShape& p) { return GemmBytes(p); }
  static GemmArgs MakeArgs(const GemmShape& product, const Operands& operands) {
    return MakeGemmArgs(product, operands);
  }
  Status Launch(const GemmArgs& args, HalfGemmKind kind, const LaunchContext& context) const {
    return RunHalfGemm(args, kind, gemm, context);
  }
  static bool IsSupported(const GemmShape& shape, HalfGemmKind kind, const LaunchContext& context) {
    return HalfGemmSupported(shape, kind, context);
  }
  static std::string Describe(const GemmShape& p) {
    return StrCat(Name(p.dtype), " ", p.rows, "x", p.k, "x", p.n);
  }

  Gemm* gemm;
};

// Times the kernels that support each product, and keeps the fastest in `kinds`.
template <typename Products, typename Kinds>
Status TuneKinds(const Products& sort, const std::vector<typename Products::Row::Product>& products,
                 const ExecutionContext& execution, Kinds* kinds,
                 std::vector<typename Products::Row>* rows) {
  if (products.empty()) return OkStatus();
  LaunchContext context;
  FT_RETURN_IF_ERROR(GetLaunchContext(execution, &context));
  std::vector<OperandBytes> bytes;
  for (const auto& product : products) bytes.push_back(Products::Bytes(product));
  Buffer memory;
  std::unique_ptr<Operands> operands;
  FT_RETURN_IF_ERROR(MakeOperands(bytes, execution, &memory, &operands));
  const std::vector<const void*> weights = operands->Weights();
  LaunchTimer timer;
  FT_RETURN_IF_ERROR(timer.Init(context.stream));
  for (const auto& product : products) {
    auto args = Products::MakeArgs(product, *operands);
    typename Products::Row row;
    row.product = product;
    row.milliseconds = -1.f;
    for (int i = 0; i < Products::kNumKinds; ++i) {
      const auto kind = static_cast<typename Products::Row::Kind>(i);
      if (!Products::IsSupported(product, kind, context)) continue;
      const auto launch = [&](int run, cudaStream_t stream) {
        LaunchContext on = context;
        on.stream = stream;
        on.overlap = run > 0 && context.compute_capability >= 90;  // as between a layer's steps
        args.w = weights[run % weights.size()];
        return sort.Launch(args, kind, on);
      };
      float milliseconds;
      // What a first launch prepares is not for a capture.
      FT_RETURN_IF_ERROR(launch(0, timer.stream()));
      FT_RETURN_IF_ERROR(timer.Time(launch, TimedRuns(weights.size()), &milliseconds));
      if (row.milliseconds < 0.f || milliseconds < row.milliseconds) {
        row.milliseconds = milliseconds;
        row.kind = kind;
      }
    }
    if (row.milliseconds < 0.f) {
      return Unimplemented("this GPU, of compute capability ", context.compute_capability / 10, ".",
                           context.compute_capability % 10, ", has no kernel for a product of ",
                           Products::Describe(product));
    }
    kinds->Keep(row);
    rows->push_back(row);
  }
  return OkStatus();
}

}  // namespace

Status TuneGemms(const std::vector<GemmShape>& shapes, const ExecutionContext& execution,
                 Gemm* gemm, std::vector<TunedGemm>* rows) {
  if (shapes.empty()) return OkStatus();
  std::vector<OperandBytes> bytes;
  for (const GemmShape& shape : shapes) bytes.push_back(GemmBytes(shape));
  Buffer memory;
  std::unique_ptr<Operands> operands;
  FT_RETURN_IF_ERROR(MakeOperands(bytes, execution, &memory, &operands));
  const std::vector<const void*> weights = operands->Weights();
  for (const GemmShape& shape : shapes) {
    GemmArgs args = MakeGemmArgs(shape, *operands);
    args.w = weights[0];
    TunedGemm row;
    FT_RETURN_IF_ERROR(
        gemm->Tune(args, weights, static_cast<cudaStream_t>(execution.stream), &row));
    rows->push_back(row);
  }
  return OkStatus();
}

Status TuneHalfGemms(const std::vector<GemmShape>& products, const ExecutionContext& execution,
                     Gemm* gemm, HalfKinds* kinds, std::vector<TunedHalfGemm>* rows) {
  return TuneKinds(HalfProducts{gemm}, products, execution, kinds, rows);
}

Status TuneInt8Gemms(const std::vector<Int8GemmArgs>& products, const ExecutionContext& execution,
                     Int8Kinds* kinds, std::vector<TunedInt8Gemm>* rows) {
  return TuneKinds(Int8Products{}, products, execution, kinds, rows);
}

Status TuneSplitGemms(const std::vector<SplitGemmArgs>& products, const ExecutionContext& execution,
                      SplitKinds* kinds, std::vector<TunedSplitGemm>* rows) {
  return TuneKinds(SplitProducts{}, products, execution, kinds, rows);
}

}  // namespace cuda
}  // namespace ft
