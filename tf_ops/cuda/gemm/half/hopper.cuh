// Products of 16-bit floats on Hopper's tensor cores, by CUTLASS: persistent, with tensor copies
// and all that follows the product in the epilogue. Included by hopper_*.cu, which instantiate it;
// compiled as gemm/cutlass.cuh says.
#pragma once

#include <type_traits>

#include "tf_ops/cuda/gemm/cutlass.cuh"
#include "tf_ops/cuda/gemm/gelu.cuh"
#include "tf_ops/cuda/gemm/half/hopper.h"

namespace ft {
namespace cuda {
namespace hopper_half {

namespace fusion = cutlass::epilogue::fusion;

// What follows the sum and the bias. Known where the kernel is compiled, as a choice in the kernel
// keeps its loads, products and stores from mixing; for few tiles it costs nothing: kAnyActivation.
enum class Epilogue { kNone, kGelu, kAnyActivation, kResidual };

struct ActivationArguments {
  bool is_gelu = false;
  FastGelu gelu = {};
};

// A GELU of float32 sums, within kHalfGeluError of |x|, or x itself.
template <Epilogue kEpilogue>
struct Activate {
  template <typename Fragment>
  struct Of {
    using Arguments = ActivationArguments;

    CUTLASS_DEVICE Fragment operator()(const Fragment& x, const Arguments& arguments) const {
      if (kEpilogue == Epilogue::kAnyActivation && !arguments.is_gelu) return x;
      Fragment y;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Fragment::kElements; ++i) y[i] = arguments.gelu(x[i]);
      return y;
    }
  };
};

// Has the weights brought into the L2 cache before the wait for the previous kernel: each block
// asks for a part of all.
template <typename Base>
struct FetchAhead : public Base {
  struct Arguments : public Base::Arguments {
    const void* weights = nullptr;
    int64_t weight_bytes = 0;  // 0: nothing is fetched ahead
  };
  struct Params : public Base::Params {
    const char* weights;
    int64_t weight_bytes;
  };

  template <typename ProblemShape>
  static Params to_underlying_arguments(const ProblemShape& problem, const Arguments& arguments,
                                        void* workspace) {
    return {Base::to_underlying_arguments(problem, arguments, workspace),
            static_cast<const char*>(arguments.weights), arguments.weight_bytes};
  }

  // CUTLASS calls it before that wait.
  template <typename ProblemShape>
  CUTLASS_DEVICE auto load_init(const ProblemShape& problem, const Params& params) const {
    constexpr int64_t kLine = 128, kMost = 16 << 10;  // of one instruction
    if (threadIdx.x == 0) {
      const int64_t blocks = int64_t{gridDim.x} * gridDim.y * gridDim.z;
      const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + int64_t{gridDim.y} * blockIdx.z);
      const int64_t part = cutlass::round_up(cutlass::ceil_div(params.weight_bytes, blocks), kLine);
      const int64_t end = cutlass::fast_min(params.weight_bytes, part * (block + 1));
      for (int64_t at = part * block; at < end; at += kMost) {
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(params.weights + at),
                     "r"(static_cast<int>(cutlass::fast_min(end - at, kMost)))
                     : "memory");
      }
    }
    return Base::load_init(problem, params);
  }
};

// T is cutlass::half_t or cutlass::bfloat16_t. EpilogueTile: what is stored at a time; wide ones
// have fewer barriers.
template <typename T, typename Tile, typename Cluster, typename Schedule, typename EpilogueSchedule,
          typename EpilogueTile, Epilogue kEpilogue>
struct HalfGemm {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  static constexpr bool kHasActivation =
      kEpilogue == Epilogue::kGelu || kEpilogue == Epilogue::kAnyActivation;
  static constexpr bool kHasResidual = kEpilogue == Epilogue::kResidual;
  static constexpr int kAlignment = 8;

  using Bias =
      fusion::Sm90RowBroadcast<0, Tile, T, float, cute::Stride<cute::_0, cute::_1, int64_t>>;
  template <typename Element>
  using Biased = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::plus, Element, float, kRound>,
                                 fusion::Sm90AccFetch, Bias>;
  using Activated =
      fusion::Sm90EVT<fusion::Sm90Compute<Activate<kEpilogue>::template Of, T, float, kRound>,
                      Biased<float>>;
  using Added = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::plus, T, float, kRound>,
                                fusion::Sm90SrcFetch<T>, Biased<float>>;
  using Fused = std::conditional_t<kHasActivation, Activated,
                                   std::conditional_t<kHasResidual, Added, Biased<T>>>;

  using Row = cutlass::layout::RowMajor;
  using Residual = std::conditional_t<kHasResidual, T, void>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, EpilogueTile, float,
      float, Residual, Row, kAlignment, T, Row, kAlignment, EpilogueSchedule, Fused>::CollectiveOp;
  using CollectiveMainloop = FetchAhead<typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, T, Row, kAlignment, T,
      cutlass::layout::ColumnMajor, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Schedule>::CollectiveOp>;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
                                           CollectiveEpilogue, cutlass::gemm::PersistentScheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Element = T;
};

template <typename Gemm>
Status Launch(const GemmArgs& args, const LaunchContext& context) {
  using Kernel = typename Gemm::Kernel;
  using T = typename Gemm::Element;
  const int m = static_cast<int>(args.shape.rows), n = static_cast<int>(args.shape.n),
            k = static_cast<int>(args.shape.k);
  typename Gemm::Device::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {m, n, k, 1};
  arguments.mainloop.ptr_A = static_cast<const T*>(args.x);
  arguments.mainloop.dA = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {m, k, 1});
  arguments.mainloop.ptr_B = static_cast<const T*>(args.w);
  arguments.mainloop.dB = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {n, k, 1});
  // Few rows wait for their weights; where there are more it was lost time.
  constexpr int kMaxRowsAhead = 512;
  if (m <= kMaxRowsAhead) {
    arguments.mainloop.weights = args.w;
    arguments.mainloop.weight_bytes = args.shape.n * args.shape.k * int64_t{sizeof(T)};
  }
  const typename Gemm::Bias::Arguments bias = {static_cast<const T*>(args.bias), T(0), {}};
  if constexpr (Gemm::kHasActivation) {
    const GemmEpilogue epilogue = args.shape.epilogue;
    const bool is_erf = epilogue == GemmEpilogue::kBiasGeluErf;
    arguments.epilogue.thread = {{{}, bias, {}},
                                 {IsGelu(epilogue), is_erf ? FastGelu::Erf() : FastGelu::Tanh()}};
  } else if constexpr (Gemm::kHasResidual) {
    arguments.epilogue.thread = {{}, {{}, bias, {}}, {}};
    arguments.epilogue.ptr_C = static_cast<const T*>(args.residual);
    arguments.epilogue.dC = cutlass::make_cute_packed_stride(typename Kernel::StrideC{}, {m, n, 1});
  } else {
    arguments.epilogue.thread = {{}, bias, {}};
  }
  arguments.epilogue.ptr_D = static_cast<T*>(args.output);
  arguments.epilogue.dD = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {m, n, 1});
  return LaunchCutlass<typename Gemm::Device>(
      arguments, context, [&] { return StrCat(Name(args.shape.dtype), " ", m, "x", k, "x", n); });
}

template <DataType kDtype>
using Number =
    std::conditional_t<kDtype == DataType::kFloat16, cutlass::half_t, cutlass::bfloat16_t>;
template <int kRows, int kColumns>
using Sizes = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>;
template <int kRows, int kColumns, int kK>
using Tile = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>, cute::Int<kK>>;
using Alone = cute::Shape<cute::_1, cute::_1, cute::_1>;
using ShareX = cute::Shape<cute::_1, cute::_2, cute::_1>;  // two blocks, rows of x
using ShareW = cute::Shape<cute::_2, cute::_1, cute::_1>;  // two blocks, rows of w
using OneGroup = cutlass::epilogue::TmaWarpSpecialized;

// One warpgroup multiplies while the other does its epilogue.
template <DataType kDtype, typename Tile, typename Cluster, Epilogue kEpilogue>
using PingPong =
    HalfGemm<Number<kDtype>, Tile, Cluster, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
             OneGroup, Sizes<64, 64>, kEpilogue>;

// Two warpgroups share a tile: sooner done where each multiprocessor has one.
template <DataType kDtype, Epilogue kEpilogue>
using Together =
    HalfGemm<Number<kDtype>, Tile<128, 192, 64>, Alone,
             cutlass::gemm::KernelTmaWarpSpecializedCooperative,
             cutlass::epilogue::TmaWarpSpecializedCooperative, Sizes<128, 64>, kEpilogue>;

// One warpgroup a block.
template <DataType kDtype, int kColumns, Epilogue kEpilogue>
using Few =
    HalfGemm<Number<kDtype>, Tile<64, kColumns, 128>, Alone,
             cutlass::gemm::KernelTmaWarpSpecialized, OneGroup, Sizes<64, kColumns>, kEpilogue>;

}  // namespace hopper_half

template <DataType kDtype>
Status HopperHalf<kDtype>::Bias128x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::PingPong<
      kDtype, hopper_half::Tile<128, 192, 64>, hopper_half::ShareW, hopper_half::Epilogue::kNone>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Gelu128x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::PingPong<
      kDtype, hopper_half::Tile<128, 192, 64>, hopper_half::ShareW, hopper_half::Epilogue::kGelu>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Residual128x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<
      hopper_half::PingPong<kDtype, hopper_half::Tile<128, 192, 64>, hopper_half::ShareW,
                            hopper_half::Epilogue::kResidual>>(args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Bias128(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::PingPong<
      kDtype, hopper_half::Tile<128, 128, 64>, hopper_half::ShareX, hopper_half::Epilogue::kNone>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Residual64x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<
      hopper_half::PingPong<kDtype, hopper_half::Tile<64, 192, 64>, hopper_half::ShareW,
                            hopper_half::Epilogue::kResidual>>(args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::BiasOne128x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Together<kDtype, hopper_half::Epilogue::kNone>>(args,
                                                                                          context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::GeluOne128x192(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Together<kDtype, hopper_half::Epilogue::kGelu>>(args,
                                                                                          context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Activated64x96(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Few<kDtype, 96, hopper_half::Epilogue::kAnyActivation>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Residual64x96(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Few<kDtype, 96, hopper_half::Epilogue::kResidual>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Activated64(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Few<kDtype, 64, hopper_half::Epilogue::kAnyActivation>>(
      args, context);
}

template <DataType kDtype>
Status HopperHalf<kDtype>::Residual64(const GemmArgs& args, const LaunchContext& context) {
  return hopper_half::Launch<hopper_half::Few<kDtype, 64, hopper_half::Epilogue::kResidual>>(
      args, context);
}

}  // namespace cuda
}  // namespace ft
