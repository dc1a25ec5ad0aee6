// Device helpers: 16-byte vectors, conversions, reductions, softmax, asynchronous copies, tensor
// core products, programmatic dependent launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "tf_ops/core/types.h"
#include "tf_ops/cuda/launch.h"

namespace ft {
namespace cuda {

// ---- Conversions --------------------------------------------------------------------------------

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ half FromFloat<half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two floats as two adjacent 16-bit numbers, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t ToPair(float low, float high);
template <>
__device__ __forceinline__ uint32_t ToPair<half>(float low, float high) {
  const half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t ToPair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 16 bytes of T.
template <typename T>
struct alignas(16) Vector16 {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// ---- Activations --------------------------------------------------------------------------------

template <Activation kActivation>
__device__ __forceinline__ float Activate(float x) {
  // Not fmaxf, which makes NaN 0.
  if (kActivation == Activation::kRelu) return x < 0.f ? 0.f : x;
  if (kActivation == Activation::kGeluErf) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  // 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), which stays exact where tanh would saturate.
  const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
  return x / (1.f + expf(-2.f * u));
}

// 2^x, to about 2 units in the last place; results below the normal range become 0.
__device__ __forceinline__ float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Reductions ---------------------------------------------------------------------------------

// Sum over kLanes neighbouring lanes (a power of two), given to all of them.
template <int kLanes = 32>
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

template <int kLanes = 32>
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  }
  return x;
}

// ---- Softmax with a running maximum -------------------------------------------------------------

// What is subtracted from scores whose largest so far is `largest`: if all were -inf there is
// nothing to subtract, and -inf - -inf would be NaN although a later score may be finite. Other NaN
// and infinities go their way: the sum becomes NaN, as in TensorFlow.
__device__ __forceinline__ float SoftmaxReference(float largest) {
  return largest == -INFINITY ? 0.f : largest;
}

// 1 / sum, by which a row's output is multiplied. Without keys the output is 0; with keys that are
// all -inf the sum is 0 and the output NaN, as in TensorFlow.
__device__ __forceinline__ float SoftmaxInverse(float sum, int num_keys) {
  return num_keys > 0 ? 1.f / sum : 0.f;
}

// Sum over the block, given to all its threads. `scratch` has room for one float per warp; it may
// be used again after the next barrier only.
template <int kThreads>
__device__ __forceinline__ float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  if (kThreads == 32) return x;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) scratch[warp] = x;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) total += scratch[i];
  return total;
}

// The largest over the block, as BlockSum.
template <int kThreads>
__device__ __forceinline__ float BlockMax(float x, float* scratch) {
  x = WarpMax(x);
  if (kThreads == 32) return x;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) scratch[warp] = x;
  __syncthreads();
  float largest = scratch[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) largest = fmaxf(largest, scratch[i]);
  return largest;
}

// ---- Neighbouring lanes -------------------------------------------------------------------------

// Four numbers of 32 bits in each of four neighbouring lanes: lane i gets the i-th of each.
__device__ __forceinline__ void TransposeQuad(uint32_t (&w)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
  const uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
  const uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
  (odd ? w[0] : w[1]) = a;
  (odd ? w[2] : w[3]) = b;
  const uint32_t c = __shfl_xor_sync(0xffffffffu, high ? w[0] : w[2], 2);
  const uint32_t d = __shfl_xor_sync(0xffffffffu, high ? w[1] : w[3], 2);
  (high ? w[0] : w[2]) = c;
  (high ? w[1] : w[3]) = d;
}

// The same of four numbers of 16 bits, two in a word.
__device__ __forceinline__ uint2 TransposeQuad(uint32_t w0, uint32_t w1, int lane) {
  const bool odd = lane & 1, high = lane & 2;
  const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w0 : w1, 2);
  const uint32_t first = high ? got : w0, second = high ? w1 : got;  // of lanes 0, 1 and 2, 3
  const uint32_t other =
      __shfl_xor_sync(0xffffffffu, __byte_perm(first, second, odd ? 0x5410 : 0x7632), 1);
  return odd ? uint2{__byte_perm(other, first, 0x7610), __byte_perm(other, second, 0x7632)}
             : uint2{__byte_perm(first, other, 0x5410), __byte_perm(second, other, 0x7610)};
}

// ---- Loads --------------------------------------------------------------------------------------

// 16 bytes of global memory or, without a branch, zeros.
__device__ __forceinline__ uint4 LoadIf(bool valid, const void* global) {
  uint4 y;
  asm volatile(
      "{\n"
      ".reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@valid ld.global.v4.b32 {%0,%1,%2,%3}, [%4];\n"
      "}\n"
      : "=&r"(y.x), "=&r"(y.y), "=&r"(y.z), "=&r"(y.w)
      : "l"(global), "r"(static_cast<int>(valid))
      : "memory");
  return y;
}

// ---- Copies to shared memory --------------------------------------------------------------------

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or 16 zero bytes. Asynchronous from sm_80 on.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

// copy(row, chunk) for each of kRows rows of kChunks chunks, which kThreads threads share. Unrolled
// where a thread always has the same chunk, so that a copy takes few instructions.
template <int kThreads, int kRows, int kChunks, typename Copy>
__device__ __forceinline__ void ForEachChunk(unsigned int thread, const Copy& copy) {
  constexpr int kRowsAtOnce = kThreads / kChunks;
  if constexpr (kThreads % kChunks == 0 && kRows % kRowsAtOnce == 0) {
    const int row = thread / kChunks, chunk = thread % kChunks;
#pragma unroll
    for (int first = 0; first < kRows; first += kRowsAtOnce) copy(first + row, chunk);
  } else {
    for (unsigned int i = thread; i < kRows * kChunks; i += kThreads) {
      copy(static_cast<int>(i / kChunks), static_cast<int>(i % kChunks));
    }
  }
}

__device__ __forceinline__ void CommitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's committed groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// ---- Tensor cores (sm_80 and later; 16-bit types) -----------------------------------------------

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d[16,8] += a[16,16] b[16,8], float32 accumulators. Lane 4g+t holds d(g,2t), d(g,2t+1), d(g+8,2t),
// d(g+8,2t+1).
template <typename T>
__device__ __forceinline__ void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1);
template <>
__device__ __forceinline__ void MultiplyAdd<half>(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
template <>
__device__ __forceinline__ void MultiplyAdd<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- Programmatic dependent launch (sm_90 and later) --------------------------------------------

// Every kernel calls WaitForPreviousKernel before it touches what an earlier kernel of the stream
// wrote or still reads; only weights may be read before it.
__device__ __forceinline__ void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// From here on the next kernel's blocks may be placed on free multiprocessors.
__device__ __forceinline__ void AllowNextKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Calls `function` with a value of the C++ type of `dtype`.
template <typename Function>
Status DispatchType(DataType dtype, const Function& function) {
  switch (dtype) {
    case DataType::kFloat32:
      return function(float());
    case DataType::kFloat16:
      return function(half());
    case DataType::kBFloat16:
      return function(__nv_bfloat16());
    default:
      return Unimplemented("no CUDA kernel for ", Name(dtype),
                           "; there are float32, float16 and bfloat16");
  }
}

}  // namespace cuda
}  // namespace ft
