// Products of 8 bits on Hopper's tensor cores, by CUTLASS: persistent, with tensor copies and all
// that follows the product in the epilogue. Included by hopper_*.cu, which instantiate it; compiled
// as gemm/cutlass.cuh says.
#pragma once

#include <type_traits>

#include "tf_ops/cuda/device_utils.cuh"
#include "tf_ops/cuda/gemm/cutlass.cuh"
#include "tf_ops/cuda/gemm/int8/activation.cuh"
#include "tf_ops/cuda/gemm/int8/hopper.h"

namespace ft {
namespace cuda {
namespace hopper {

namespace fusion = cutlass::epilogue::fusion;

struct ActivationArguments {
  Int8Activation activation = Int8Activation::kNone;
};

// activation(y) * out_scale, not yet rounded. Which activation is known where the kernel is
// compiled, or the same for all threads: kAnyActivation.
constexpr auto kAnyActivation = static_cast<Int8Activation>(-2);
template <Int8Activation kActivation, bool kToIntegers>
struct ActivateAndScale {
  template <typename Fragment>
  struct Of {
    using Arguments = ActivationArguments;

    CUTLASS_DEVICE Fragment operator()(const Fragment& y, const Fragment& out_scale,
                                       const Arguments& arguments) const {
      Fragment x = y;
      ActivateIntegers<Fragment::kElements>(
          kActivation == kAnyActivation ? arguments.activation : kActivation, &x[0]);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Fragment::kElements; ++i) {
        x[i] = x[i] * out_scale[i];
        // CUTLASS rounds and saturates, but of integers makes NaN 0: fmaxf makes it the end of the
        // range.
        if constexpr (kToIntegers) x[i] = fmaxf(x[i], -128.f);
      }
      return x;
    }
  };
};

// Input is int8_t or cutlass::float_e4m3_t, Output that or a number.
template <typename Input, typename Output, typename Tile, typename Cluster, typename Schedule,
          typename EpilogueSchedule, Int8Activation kActivation>
struct Int8Gemm {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  static constexpr bool kRounds = std::is_same_v<Output, Input>;
  static constexpr bool kIntegers = std::is_same_v<Input, int8_t>;
  using Sum = std::conditional_t<kIntegers, int32_t, float>;
  static constexpr int kInputAlignment = 16, kOutputAlignment = 16 / sizeof(Output);

  using RowVector =
      fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<cute::_0, cute::_1, int64_t>>;
  // sum * scale + bias
  template <typename Element>
  using Scaled = fusion::Sm90EVT<
      fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Element, float, kRound>, RowVector,
      fusion::Sm90AccFetch, RowVector>;
  using Scalar = fusion::Sm90ScalarBroadcast<float>;
  using Quantized =
      fusion::Sm90EVT<fusion::Sm90Compute<ActivateAndScale<kActivation, kIntegers>::template Of,
                                          Output, float, kRound>,
                      Scaled<float>, Scalar>;
  using Epilogue = std::conditional_t<kRounds, Quantized, Scaled<Output>>;

  using Row = cutlass::layout::RowMajor;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, Sum, float, void, Row, kOutputAlignment,
      Output, Row, kOutputAlignment, EpilogueSchedule, Epilogue>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Input, Row, kInputAlignment, Input,
      cutlass::layout::ColumnMajor, kInputAlignment, Sum, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Schedule>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
                                           CollectiveEpilogue, cutlass::gemm::PersistentScheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
};

template <typename Gemm>
typename Gemm::Epilogue::Arguments EpilogueArguments(const Int8GemmArgs& args) {
  const typename Gemm::RowVector::Arguments scale = {args.scale, 0.f, {}};
  // Without a vector it is 0.
  const typename Gemm::RowVector::Arguments bias = {args.bias, 0.f, {}};
  if constexpr (Gemm::kRounds) {
    typename Gemm::Scalar::Arguments out_scale;
    out_scale.scalars[0] = 1.f;  // without a pointer
    out_scale.scalar_ptrs[0] = args.out_scale;
    return {{scale, {}, bias, {}}, out_scale, {args.activation}};
  } else {
    return {scale, {}, bias, {}};
  }
}

template <typename Gemm>
Status Launch(const Int8GemmArgs& args, const LaunchContext& context) {
  using Kernel = typename Gemm::Kernel;
  using Output = typename Kernel::CollectiveEpilogue::ElementD;
  const int m = static_cast<int>(args.rows), n = static_cast<int>(args.n),
            k = static_cast<int>(args.k);
  typename Gemm::Device::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {m, n, k, 1};
  using Input = typename Kernel::CollectiveMainloop::ElementA;
  arguments.mainloop.ptr_A = static_cast<const Input*>(args.x);
  arguments.mainloop.dA = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {m, k, 1});
  arguments.mainloop.ptr_B = static_cast<const Input*>(args.w);
  arguments.mainloop.dB = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {n, k, 1});
  arguments.epilogue.thread = EpilogueArguments<Gemm>(args);
  arguments.epilogue.ptr_D = static_cast<Output*>(args.output);
  arguments.epilogue.dD = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {m, n, 1});
  return LaunchCutlass<typename Gemm::Device>(arguments, context, [&] {
    return StrCat(Name(args.input_dtype), " ", args.rows, "x", args.k, "x", args.n, " to ",
                  Name(args.output_dtype));
  });
}

using Tile128 = cute::Shape<cute::_128, cute::_128, cute::_128>;
using Tile64 = cute::Shape<cute::_64, cute::_128, cute::_128>;
using TileFew = cute::Shape<cute::_64, cute::_64, cute::_256>;
using Alone = cute::Shape<cute::_1, cute::_1, cute::_1>;
using Pair = cute::Shape<cute::_1, cute::_2, cute::_1>;  // share rows of x
using OneGroup = cutlass::epilogue::TmaWarpSpecialized;

// The tiles that were fastest on an H100 at BERT-base's sizes. Pingpong: one warpgroup multiplies
// while the other does its epilogue.
using Pingpong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
template <typename Output, Int8Activation kActivation = Int8Activation::kNone>
using Gemm128 = Int8Gemm<int8_t, Output, Tile128, Pair, Pingpong, OneGroup, kActivation>;
template <typename Output, Int8Activation kActivation = Int8Activation::kNone>
using Gemm64 = Int8Gemm<int8_t, Output, Tile64, Alone, Pingpong, OneGroup, kActivation>;
template <typename Output>
using GemmFew = Int8Gemm<int8_t, Output, TileFew, Alone, cutlass::gemm::KernelTmaWarpSpecialized,
                         OneGroup, kAnyActivation>;

// The same of float8. Tensor cores keep sums to the end ("fast accumulation"), which costs bits
// that float8 does not have (docs/fp8.md).
using Float8 = cutlass::float_e4m3_t;
using Float8Pingpong = cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum;
template <typename Output, Int8Activation kActivation = Int8Activation::kNone>
using Float8Gemm128 =
    Int8Gemm<Float8, Output, Tile128, Pair, Float8Pingpong, OneGroup, kActivation>;
template <typename Output, Int8Activation kActivation = Int8Activation::kNone>
using Float8Gemm64 = Int8Gemm<Float8, Output, Tile64, Alone, Float8Pingpong, OneGroup, kActivation>;
template <typename Output>
using Float8GemmFew =
    Int8Gemm<Float8, Output, TileFew, Alone, cutlass::gemm::KernelTmaWarpSpecializedFP8FastAccum,
             OneGroup, kAnyActivation>;

}  // namespace hopper
}  // namespace cuda
}  // namespace ft
