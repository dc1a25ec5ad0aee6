// What the products for Hopper that are not CUTLASS's share: its instructions for them, maps of
// their operands, and rows in and out of registers. Included by norm/hopper.cuh and
// cluster/hopper.cuh; compiled for sm_90a alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

// Instructions of 144 columns, too.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include "cutlass/numeric_types.h"
// CUTLASS's headers depend on this order.
#include "cute/arch/mma_sm90.hpp"
#include "tf_ops/cuda/hopper.cuh"
#include "tf_ops/cuda/integers.cuh"
#include "tf_ops/cuda/tensor_map.h"

namespace ft {
namespace cuda {

// Rows of a warpgroup.
constexpr int kUnitRows = 64;

// Bytes of a row in a stage, and of a swizzle.
constexpr int kStageRowBytes = 128;

// What x is for CUTLASS.
template <typename Input>
struct CuteTypeOf;
template <>
struct CuteTypeOf<half> {
  using Type = cute::half_t;
};
template <>
struct CuteTypeOf<__nv_bfloat16> {
  using Type = cute::bfloat16_t;
};
template <>
struct CuteTypeOf<int8_t> {
  using Type = int8_t;
};
template <>
struct CuteTypeOf<Float8> {
  using Type = cute::float_e4m3_t;
};

// The instruction of CUTLASS that multiplies kUnitRows rows of x by kColumns rows of w.
template <typename Input, int kColumns>
struct TileProduct {
  static constexpr bool kIntegers = std::is_same_v<Input, int8_t>;
  using Sum = std::conditional_t<kIntegers, uint32_t, float>;
  using Element = typename CuteTypeOf<Input>::Type;
  using Instruction = decltype(cute::SM90::GMMA::ss_op_selector<
                               Element, Element, std::conditional_t<kIntegers, int32_t, float>,
                               cute::Shape<cute::Int<kUnitRows>, cute::Int<kColumns>,
                                           cute::Int<kStageRowBytes / sizeof(Input)>>,
                               cute::SM90::GMMA::Major::K, cute::SM90::GMMA::Major::K>());
  static_assert(std::is_same_v<typename Instruction::CRegisters, Sum[kColumns / 2]>,
                "one instruction has all columns");

  // d (+)= x w^T of a stage, whose rows lie in shared memory as tensor copies swizzle them: the
  // warpgroup's kUnitRows of x and kColumns of w.
  static __device__ __forceinline__ void AddStage(uint32_t x, uint32_t w, Sum (&d)[kColumns / 2],
                                                  bool is_first) {
    constexpr int kStep = 32;  // bytes of k that an instruction multiplies
#pragma unroll
    for (int at = 0; at < kStageRowBytes; at += kStep) {
      Add(MatrixDescriptor<kStageRowBytes>(x + at, 16),
          MatrixDescriptor<kStageRowBytes>(w + at, 16), d, !(is_first && at == 0),
          std::make_index_sequence<kColumns / 2>());
    }
  }

 private:
  template <size_t... kIndex>
  static __device__ __forceinline__ void Add(uint64_t x, uint64_t w, Sum (&d)[kColumns / 2],
                                             bool accumulate, std::index_sequence<kIndex...>) {
    Instruction::fma(
        x, w, d[kIndex]...,
        accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
  }
};

// Adds to `products` what `num_stages` stages of a ring give, from `place` on: add(k, slot) starts
// the products of stage k, full(slot) is the barrier that it waits for, and release(slot) is called
// when a stage's have been computed. The last stage's slot is left to the caller.
template <int kStages, typename Products, typename Full, typename Release, typename Add>
__device__ __forceinline__ int MultiplyStages(int num_stages, Products& products, const Full& full,
                                              const Release& release, RingPlace<kStages>* place,
                                              const Add& add) {
  int previous = 0;
  for (int k = 0; k < num_stages; ++k) {
    WaitBarrier(full(place->slot), place->parity);
    __syncwarp();
    PinRegisters(products);
    FenceProducts();
    add(k, place->slot);
    CommitProducts();
    PinRegisters(products);
    if (k > 0) {
      WaitProducts<1>();
      release(previous);
    }
    previous = place->slot;
    place->Advance();
  }
  WaitProducts<0>();
  PinRegisters(products);
  return previous;
}

// Waits until all has been read that a ring was filled with, up to `place`: a block may not end
// while another still tells it of a slot.
template <int kStages, typename Empty>
__device__ __forceinline__ void WaitForEmptyRing(const Empty& empty, RingPlace<kStages>* place) {
  for (int slot = 0; slot < kStages; ++slot) {
    WaitBarrier(empty(place->slot), place->parity ^ 1);
    place->Advance();
  }
}

template <typename T>
__device__ __forceinline__ float2 PairToFloats(uint32_t pair) {
  if constexpr (std::is_same_v<T, half>) {
    return __half22float2(*reinterpret_cast<const half2*>(&pair));
  } else {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
  }
}

// The map of a row-major matrix [rows,columns] whose boxes have box_rows rows of box_bytes bytes,
// 128 or 64, which are what is swizzled.
template <typename T>
Status MakeRowMap(const void* data, int64_t rows, int64_t columns, int box_rows, int box_bytes,
                  CUtensorMap* map) {
  TensorBoxes<2> boxes;
  boxes.type = sizeof(T) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  boxes.data = data;
  boxes.sizes[0] = static_cast<cuuint64_t>(columns);
  boxes.sizes[1] = static_cast<cuuint64_t>(rows);
  boxes.strides[1] = static_cast<cuuint64_t>(columns * sizeof(T));
  boxes.box[0] = static_cast<cuuint32_t>(box_bytes / sizeof(T));
  boxes.box[1] = static_cast<cuuint32_t>(box_rows);
  boxes.swizzle = box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  return MakeTensorMap(boxes, map);
}

}  // namespace cuda
}  // namespace ft
