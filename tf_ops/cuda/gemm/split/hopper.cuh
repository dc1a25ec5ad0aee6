// Products of split rows on Hopper's tensor cores, by CUTLASS with a main loop of our own. Included
// by hopper_split.cu, which instantiates it; compiled as gemm/cutlass.cuh says.
#pragma once

#include "tf_ops/cuda/gemm/cutlass.cuh"
#include "tf_ops/cuda/gemm/split/hopper.h"

namespace ft {
namespace cuda {
namespace hopper_split {

namespace fusion = cutlass::epilogue::fusion;

// The tiles of a stage have one group of numbers: two blocks of 16 high halves, two of low ones.
// The three products of a stage are added up on the tensor cores, the small ones first; float32
// arithmetic adds that to the sums while the tensor cores are at the next stage, or at the other
// warpgroup's.
template <typename Base>
struct SplitMainloop : public Base {
  using typename Base::MainloopPipeline;
  using typename Base::Params;
  using typename Base::PipelineState;
  using typename Base::SmemLayoutA;
  using typename Base::SmemLayoutB;
  using typename Base::TensorStorage;
  using typename Base::TiledMma;

  template <typename Sums>
  CUTLASS_DEVICE void mma(MainloopPipeline pipeline, PipelineState read, Sums& sums, int num_stages,
                          int thread, TensorStorage& shared, const Params&) {
    constexpr int kWarpgroup = cutlass::NumThreadsPerWarpGroup;
    const auto tiles_a =
        cute::make_tensor(cute::make_smem_ptr(shared.smem_A.data()), SmemLayoutA{});
    const auto tiles_b =
        cute::make_tensor(cute::make_smem_ptr(shared.smem_B.data()), SmemLayoutB{});
    TiledMma tiled;
    const int warpgroup = __shfl_sync(0xffffffffu, thread / kWarpgroup, 0);
    const auto slice = tiled.get_slice(warpgroup * kWarpgroup);
    const auto a = slice.make_fragment_A(slice.partition_A(tiles_a));  // (MMA,MMA_M,MMA_K,PIPE)
    const auto b = slice.make_fragment_B(slice.partition_B(tiles_b));  // (MMA,MMA_N,MMA_K,PIPE)
    static_assert(decltype(cute::size<2>(a))::value == 4, "two blocks of high halves, two of low");

    auto even = cute::make_fragment_like(sums);
    auto odd = cute::make_fragment_like(sums);
    const auto multiply = [&](auto& part) {
      pipeline.consumer_wait(read, pipeline.consumer_try_wait(read));
      const int stage = read.index();
      cute::warpgroup_fence_operand(part);
      cute::warpgroup_arrive();
      tiled.accumulate_ = cute::GMMA::ScaleOut::Zero;
      const auto product = [&](int block_a, int block_b) {
        cute::gemm(tiled, a(cute::_, cute::_, block_a, stage), b(cute::_, cute::_, block_b, stage),
                   part);
        tiled.accumulate_ = cute::GMMA::ScaleOut::One;
      };
      product(2, 0);
      product(0, 2);
      product(3, 1);
      product(1, 3);
      product(0, 0);
      product(1, 1);
      cute::warpgroup_commit_batch();
      ++read;
    };
    PipelineState release = read;
    const auto add = [&](auto& part) {
      cute::warpgroup_fence_operand(part);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < cute::size(sums); ++i) sums(i) += part(i);
      pipeline.consumer_release(release);
      ++release;
    };

    cute::clear(sums);
    // Nothing is under way from one turn to the next: ptxas would wait for each product.
    CUTLASS_PRAGMA_NO_UNROLL
    for (; num_stages > 1; num_stages -= 2) {
      multiply(even);
      multiply(odd);
      cute::warpgroup_wait<1>();
      add(even);
      cute::warpgroup_wait<0>();
      add(odd);
    }
    if (num_stages == 1) {
      multiply(even);
      cute::warpgroup_wait<0>();
      add(even);
    }
  }

  // `mma` has released all stages.
  CUTLASS_DEVICE void mma_tail(MainloopPipeline, PipelineState, int) {}
};

template <typename Tile, typename Cluster, typename Schedule, typename EpilogueSchedule>
struct SplitGemm {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  static constexpr int kInputAlignment = 8, kOutputAlignment = 4;

  using RowVector =
      fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<cute::_0, cute::_1, int64_t>>;
  using ColumnVector =
      fusion::Sm90ColBroadcast<0, Tile, float, float, cute::Stride<cute::_1, cute::_0, int64_t>>;
  // (sum * w_scale) * x_scale + bias
  using Scaled = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>,
                                 RowVector, fusion::Sm90AccFetch>;
  using Epilogue =
      fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, float, float, kRound>,
                      ColumnVector, Scaled, RowVector>;

  using Row = cutlass::layout::RowMajor;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Row, kOutputAlignment,
      float, Row, kOutputAlignment, EpilogueSchedule, Epilogue>::CollectiveOp;
  using CollectiveMainloop = SplitMainloop<typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, cutlass::half_t, Row, kInputAlignment,
      cutlass::half_t, cutlass::layout::ColumnMajor, kInputAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Schedule>::CollectiveOp>;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
                                           CollectiveEpilogue, cutlass::gemm::PersistentScheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
};

template <typename Gemm>
Status Launch(const SplitGemmArgs& args, const LaunchContext& context) {
  using Kernel = typename Gemm::Kernel;
  typename Gemm::Device::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  // Parts of k are products of their own, which lie side by side in x and w.
  const int64_t k = 2 * SplitPitch(args.k), part = k / args.num_splits;
  arguments.problem_shape = {static_cast<int>(args.rows), static_cast<int>(args.n),
                             static_cast<int>(part), args.num_splits};
  arguments.mainloop.ptr_A = static_cast<const cutlass::half_t*>(args.x);
  arguments.mainloop.dA = typename Kernel::StrideA{k, {}, part};
  arguments.mainloop.ptr_B = static_cast<const cutlass::half_t*>(args.w);
  arguments.mainloop.dB = typename Kernel::StrideB{k, {}, part};
  const typename Gemm::RowVector::Arguments w_scale = {args.w_scale, 0.f, {}};
  const typename Gemm::ColumnVector::Arguments x_scale = {args.x_scale, 0.f, {}};
  // Without a vector it is 0.
  const typename Gemm::RowVector::Arguments bias = {args.bias, 0.f, {}};
  arguments.epilogue.thread = {x_scale, {w_scale, {}, {}}, bias, {}};
  arguments.epilogue.ptr_D = args.output;
  arguments.epilogue.dD =
      typename Kernel::StrideD{args.output_pitch, {}, args.rows * args.output_pitch};
  return LaunchCutlass<typename Gemm::Device>(
      arguments, context, [&] { return StrCat("split ", args.rows, "x", args.k, "x", args.n); });
}

// Halves in a stage: both of one group. Two warpgroups have 64 rows each.
template <int kColumns, typename Cluster>
using Cooperative =
    SplitGemm<cute::Shape<cute::_128, cute::Int<kColumns>, cute::Int<2 * kSplitGroup>>, Cluster,
              cutlass::gemm::KernelTmaWarpSpecializedCooperative,
              cutlass::epilogue::TmaWarpSpecializedCooperative>;

using Gemm128 = Cooperative<128, cute::Shape<cute::_2, cute::_1, cute::_1>>;  // share rows of w
using Gemm64 = Cooperative<64, cute::Shape<cute::_1, cute::_2, cute::_1>>;    // share rows of x

}  // namespace hopper_split
}  // namespace cuda
}  // namespace ft
