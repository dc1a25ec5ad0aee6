#include <cstdlib>
#include <cstring>
#include <string>

#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

namespace generic {
extern const Primitives kFloatPrimitives;
void ConvertImpl(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);
}  // namespace generic
#ifdef __x86_64__
namespace avx2 {
extern const Primitives kFloatPrimitives;
void ConvertImpl(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);
}  // namespace avx2
namespace avx512 {
extern const Primitives kFloatPrimitives;
void ConvertImpl(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count);
}  // namespace avx512
namespace avx512bf16 {
extern const Primitives kBfloat16Primitives;
}  // namespace avx512bf16
#endif

namespace {

enum Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

Isa DetectIsa() {
  Isa isa = kGeneric;
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isa = kAvx2;
  }
  if (isa == kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    isa = kAvx512;
    if (__builtin_cpu_supports("avx512bf16")) isa = kAvx512Bf16;
  }
#endif
  if (const char* cap = std::getenv("FT_CPU_ISA")) {
    const std::string names[] = {"generic", "avx2", "avx512", "avx512bf16"};
    for (int i = 0; i < 4; ++i) {
      if (names[i] == cap && i < isa) isa = static_cast<Isa>(i);
    }
  }
  return isa;
}

Isa CurrentIsa() {
  static const Isa isa = DetectIsa();
  return isa;
}

}  // namespace

const Primitives& GetPrimitives(DataType dtype, bool even_sizes) {
  (void)even_sizes;
#ifdef __x86_64__
  const Isa isa = CurrentIsa();
  if (dtype == DataType::kBFloat16 && even_sizes && isa == kAvx512Bf16) {
    return avx512bf16::kBfloat16Primitives;
  }
  if (isa >= kAvx512) return avx512::kFloatPrimitives;
  if (isa == kAvx2) return avx2::kFloatPrimitives;
#endif
  (void)dtype;
  return generic::kFloatPrimitives;
}

void Convert(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count) {
  if (count == 0) return;  // the pointers may be null, which memcpy does not allow
  if (x_dtype == y_dtype) {
    std::memcpy(y, x, count * SizeOf(x_dtype));
    return;
  }
#ifdef __x86_64__
  if (CurrentIsa() >= kAvx512) return avx512::ConvertImpl(x, x_dtype, y, y_dtype, count);
  if (CurrentIsa() == kAvx2) return avx2::ConvertImpl(x, x_dtype, y, y_dtype, count);
#endif
  generic::ConvertImpl(x, x_dtype, y, y_dtype, count);
}

}  // namespace ft::cpu
