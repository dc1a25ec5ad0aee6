// Device helpers of sm_90a: mbarriers, clusters, tensor copies, warpgroup products. Included by the
// kernels that are compiled for sm_90a alone. Semantics: PTX ISA 8.x, "mbarrier",
// "cp.async.bulk.tensor", "mapa", "st.async", "wgmma".
#pragma once

#include <cuda.h>

#include "tf_ops/cuda/device_utils.cuh"

namespace ft {
namespace cuda {

// ---- Barriers -----------------------------------------------------------------------------------

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}

// Makes InitBarrier visible to the copy engine; a __syncthreads() must follow for the other
// threads.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase wait for `bytes` of tensor copies besides.
__device__ __forceinline__ void ArriveExpectBytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity has completed.
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, int parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// A place in a ring of buffers: parity is that of the barriers' phase.
template <int kSize>
struct RingPlace {
  int slot = 0, parity = 0;
  __device__ __forceinline__ void Advance() {
    if (++slot == kSize) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Orders this thread's ordinary accesses to shared memory before later ones of tensor cores and
// copy engine.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// A barrier of 128 threads; id 1 to 15 (0 is __syncthreads).
__device__ __forceinline__ void SyncWarpgroup(int id) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(id) : "memory");
}

// A barrier of `threads` threads of which some wait and the others only arrive.
__device__ __forceinline__ void WaitNamed(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void ArriveNamed(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Gives the warpgroup's registers up but for kRegisters a thread, or takes what others gave up.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// ---- Clusters -----------------------------------------------------------------------------------

// A barrier of all threads of the cluster, after which its blocks run, and see each other's
// barriers that FenceBarrierInit made visible. It orders no other accesses to memory.
__device__ __forceinline__ void ArriveCluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void WaitCluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void SyncCluster() {
  ArriveCluster();
  WaitCluster();
}

// What `shared` of this block is in block `rank` of its cluster.
__device__ __forceinline__ uint32_t MapToBlock(uint32_t shared, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}

// Arrives at a barrier that MapToBlock gave: says that a tensor copy may overwrite what this thread
// has read. It does not order writes to global memory, for which ".release.cluster" would fence,
// half a microsecond each time.
__device__ __forceinline__ void ArriveRemote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Puts two numbers into another block's shared memory and counts their 8 bytes on a barrier there;
// both addresses are MapToBlock's.
__device__ __forceinline__ void StoreRemote(uint32_t shared, float x, float y, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];\n" ::"r"(
          shared),
      "f"(x), "f"(y), "r"(barrier)
      : "memory");
}

// The same of four numbers of 32 bits, aligned to their 16 bytes.
__device__ __forceinline__ void StoreRemote(uint32_t shared, const uint32_t (&x)[4],
                                            uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];\n" ::"r"(shared),
      "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(barrier)
      : "memory");
}

// ---- Tensor copies ------------------------------------------------------------------------------

__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Copies the box at (c0, c1, c2) to shared memory and counts its bytes on the barrier. Elements
// outside of the tensor become zeros, and count.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map, int c0, int c1,
                                        int c2, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(shared),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier)
      : "memory");
}

// The same of two dimensions.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map, int c0, int c1,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(shared),
      "l"(map), "r"(c0), "r"(c1), "r"(barrier)
      : "memory");
}

// The same to all blocks of the cluster whose bit is in `blocks`, at the same places of their
// shared memory.
__device__ __forceinline__ void CopyBoxTo(uint16_t blocks, uint32_t shared, const CUtensorMap* map,
                                          int c0, int c1, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(shared),
      "l"(map), "r"(c0), "r"(c1), "r"(barrier), "h"(blocks)
      : "memory");
}

// Brings the box to the L2 cache.
__device__ __forceinline__ void PrefetchBox(const CUtensorMap* map, int c0, int c1) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];\n" ::"l"(map),
               "r"(c0), "r"(c1)
               : "memory");
}

// Stores four matrices of 8 x 8 numbers of 16 bits: lane i of `address` has row i % 8 of matrix i /
// 8, and of each 8 columns number i % 4 * 2 and the next in r, of row i / 4.
__device__ __forceinline__ void StoreMatrices(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Copies bytes from shared to global memory, a multiple of 16 at addresses that are one. They have
// to stay in shared memory until WaitCopiesOut; FenceAsyncProxy must follow their stores.
__device__ __forceinline__ void CopyOut(void* global, uint32_t shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(global),
               "r"(shared), "r"(bytes)
               : "memory");
}

// Waits until this thread's CopyOut have read shared memory.
__device__ __forceinline__ void WaitCopiesOut() {
  asm volatile(
      "cp.async.bulk.commit_group;\n"
      "cp.async.bulk.wait_group.read 0;\n" ::
          : "memory");
}

// ---- Warpgroup products -------------------------------------------------------------------------

// How a matrix lies in shared memory, for wgmma. Rows of kRowBytes (128 or 64), swizzled in 16-byte
// chunks over that width as tensor copies do it; 8 rows are `8 * kRowBytes` apart.
//  - A row is along K (K-major): kPanelBytes is not used.
//  - A row is along N (transposed): every kRowBytes of N lie kPanelBytes further.
// Source: PTX ISA, "wgmma matrix descriptor"; CuTe's canonical layouts name the same strides.
template <int kRowBytes>
__device__ __forceinline__ uint64_t MatrixDescriptor(uint32_t address, int panel_bytes) {
  static_assert(kRowBytes == 128 || kRowBytes == 64, "swizzle width");
  constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2;
  return (kSwizzle << 62) | (static_cast<uint64_t>(8 * kRowBytes >> 4) << 32) |
         (static_cast<uint64_t>(panel_bytes >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

// Where that swizzle puts the 16-byte chunk of a row.
template <int kRowBytes>
__device__ __forceinline__ int SwizzledChunk(int row, int chunk) {
  return kRowBytes == 128 ? chunk ^ (row % 8) : chunk ^ (row / 2 % 4);
}

// Before the first product after other instructions wrote its registers.
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending committed groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// Ties registers to this place: the compiler does not know that products run on after their
// instruction, and would read results early or give operands to others.
template <int kSize>
__device__ __forceinline__ void PinRegisters(float (&r)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(r[i]));
}
template <int kSize>
__device__ __forceinline__ void PinRegisters(uint32_t (&r)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(r[i]));
}
template <int kSize>
__device__ __forceinline__ void PinRegisters(uint32_t (&r)[kSize][4]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(r[i][j]));
  }
}

// Keeps what `x`, which is never negative, is computed from before the following wait. ptxas would
// move the wait up, since nothing says otherwise, and the work that was to run under a product
// after it; it moves nothing over an instruction that has effects, such as this one that never
// happens.
__device__ __forceinline__ void KeepBefore(float x) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p nanosleep.u32 1;\n}\n" ::"f"(x)
               : "memory");
}

// d[64,kN] (+)= a[64,16] b[16,kN] of one warpgroup, float32 accumulators. Lane 4g+t of warp w holds
// in d[4j..4j+3]: d(16w+g, 8j+2t), d(16w+g, 8j+2t+1), d(16w+g+8, 8j+2t), d(16w+g+8, 8j+2t+1).
//   FromShared:    a and b K-major in shared memory.
//   FromRegisters: a in registers, as for MultiplyAdd; b in shared memory, K-major or transposed.
template <typename T, int kN>
struct WarpgroupProduct;

#define FT_OUT8(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FT_OUT16 FT_OUT8(0), FT_OUT8(8)
#define FT_OUT32 FT_OUT16, FT_OUT8(16), FT_OUT8(24)
#define FT_OUT48 FT_OUT32, FT_OUT8(32), FT_OUT8(40)
#define FT_OUT64 FT_OUT48, FT_OUT8(48), FT_OUT8(56)
#define FT_REGISTERS16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FT_REGISTERS32 \
  FT_REGISTERS16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FT_REGISTERS48 \
  FT_REGISTERS32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define FT_REGISTERS64 \
  FT_REGISTERS48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// kCount = kN / 2 accumulators; o0 to o6: the numbers of the operands that follow them.
#define FT_DEFINE_PRODUCT(Type, kName, kN, kCount, o0, o1, o2, o3, o4, o5, o6)                    \
  template <>                                                                                     \
  struct WarpgroupProduct<Type, kN> {                                                             \
    static __device__ __forceinline__ void FromShared(float (&d)[kCount], uint64_t a, uint64_t b, \
                                                      int accumulate) {                           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2                                       \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." kName "." kName             \
                   " {" FT_REGISTERS##kCount "}, %" #o0 ", %" #o1 ", p, 1, 1, 0, 0;\n}\n"         \
                   : FT_OUT##kCount                                                               \
                   : "l"(a), "l"(b), "r"(accumulate)                                              \
                   : "memory");                                                                   \
    }                                                                                             \
    template <int kTransposed>                                                                    \
    static __device__ __forceinline__ void FromRegisters(float (&d)[kCount],                      \
                                                         const uint32_t (&a)[4], uint64_t b,      \
                                                         int accumulate) {                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5                                       \
                   ", 0;\n"                                                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." kName "." kName             \
                   " {" FT_REGISTERS##kCount "}, {%" #o0 ",%" #o1 ",%" #o2 ",%" #o3 "}, %" #o4    \
                                             ", p, 1, 1, %" #o6 ";\n}\n"                          \
                   : FT_OUT##kCount                                                               \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),         \
                     "n"(kTransposed)                                                             \
                   : "memory");                                                                   \
    }                                                                                             \
  }
#define FT_DEFINE_PRODUCTS(Type, kName)                               \
  FT_DEFINE_PRODUCT(Type, kName, 32, 16, 16, 17, 18, 19, 20, 21, 22); \
  FT_DEFINE_PRODUCT(Type, kName, 64, 32, 32, 33, 34, 35, 36, 37, 38); \
  FT_DEFINE_PRODUCT(Type, kName, 96, 48, 48, 49, 50, 51, 52, 53, 54); \
  FT_DEFINE_PRODUCT(Type, kName, 128, 64, 64, 65, 66, 67, 68, 69, 70)
FT_DEFINE_PRODUCTS(half, "f16");
FT_DEFINE_PRODUCTS(__nv_bfloat16, "bf16");
#undef FT_DEFINE_PRODUCTS
#undef FT_DEFINE_PRODUCT
#undef FT_REGISTERS64
#undef FT_REGISTERS48
#undef FT_REGISTERS32
#undef FT_REGISTERS16
#undef FT_OUT64
#undef FT_OUT48
#undef FT_OUT32
#undef FT_OUT16
#undef FT_OUT8

}  // namespace cuda
}  // namespace ft
