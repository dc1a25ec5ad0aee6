#include <cstdlib>
#include <cstring>
#include <iterator>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

#define FT_DECLARE(isa)                                                    \
  namespace isa {                                                          \
  extern const Primitives kPrimitives, kInt8Primitives;                    \
  }
FT_DECLARE(generic)
#ifdef __x86_64__
FT_DECLARE(avx2)
FT_DECLARE(avxvnni)
FT_DECLARE(avx512)
FT_DECLARE(avx512vnni)
FT_DECLARE(avx512bf16)
#endif

namespace {

// An instruction set, what computes with it, and which processors have it.
struct Isa {
  const char* name;
  const Primitives *primitives, *int8_primitives;
  bool (*is_supported)();
};

#ifdef __x86_64__
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
// Alder Lake's and Zen 5's, which GCC 12 cannot name: CPUID leaf 7, sub-leaf 1, EAX bit 4.
bool HasAvxVnni() {
  unsigned eax = 0, ebx, ecx, edx;
  return HasAvx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool HasAvx512Vnni() { return HasAvx512() && __builtin_cpu_supports("avx512vnni"); }
bool HasAvx512Bf16() { return HasAvx512Vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

// From the slowest to the fastest.
constexpr Isa kIsas[] = {
    {"generic", &generic::kPrimitives, &generic::kInt8Primitives, [] { return true; }},
#ifdef __x86_64__
    {"avx2", &avx2::kPrimitives, &avx2::kInt8Primitives, HasAvx2},
    {"avxvnni", &avxvnni::kPrimitives, &avxvnni::kInt8Primitives, HasAvxVnni},
    {"avx512", &avx512::kPrimitives, &avx512::kInt8Primitives, HasAvx512},
    {"avx512vnni", &avx512vnni::kPrimitives, &avx512vnni::kInt8Primitives, HasAvx512Vnni},
    {"avx512bf16", &avx512bf16::kPrimitives, &avx512bf16::kInt8Primitives, HasAvx512Bf16},
#endif
};

// The best one for activations computed in `type`.
const Isa& BestIsa(DataType type) {
  size_t end = std::size(kIsas);
  if (const char* cap = std::getenv("FT_CPU_ISA")) {
    for (size_t i = 0; i < std::size(kIsas); ++i) {
      if (std::strcmp(kIsas[i].name, cap) == 0) end = i + 1;
    }
  }
#ifdef __x86_64__
  __builtin_cpu_init();
#endif
  for (size_t i = end; i-- > 1;) {
    if (kIsas[i].primitives->compute_dtype == type && kIsas[i].is_supported()) return kIsas[i];
  }
  return type == DataType::kFloat32 ? kIsas[0] : BestIsa(DataType::kFloat32);
}

const Isa& Float32Isa() {
  static const Isa& isa = BestIsa(DataType::kFloat32);
  return isa;
}

}  // namespace

const Primitives& GetPrimitives(const EncoderConfig& config) {
  static const Isa& bfloat16 = BestIsa(DataType::kBFloat16);
  // Integers are summed in groups that are filled up; bfloat16's pairs are not.
  const bool even = config.head_size % 2 == 0 && (config.int8_mode != 0 || config.inner_size % 2 == 0);
  const Isa& isa = config.dtype == DataType::kBFloat16 && even ? bfloat16 : Float32Isa();
  return config.int8_mode != 0 ? *isa.int8_primitives : *isa.primitives;
}

void Convert(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count) {
  if (count == 0) return;  // the pointers may be null, which memcpy does not allow
  if (x_dtype == y_dtype) {
    std::memcpy(y, x, count * SizeOf(x_dtype));
    return;
  }
  Float32Isa().primitives->convert(x, x_dtype, y, y_dtype, count);
}

}  // namespace ft::cpu
