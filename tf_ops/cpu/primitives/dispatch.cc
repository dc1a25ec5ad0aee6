#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "tf_ops/cpu/primitives/primitives.h"

namespace ft::cpu {

#define FT_DECLARE(isa)                                 \
  namespace isa {                                       \
  extern const Primitives kPrimitives, kInt8Primitives; \
  }
FT_DECLARE(generic)
#ifdef __x86_64__
FT_DECLARE(avx2)
FT_DECLARE(avxvnni)
FT_DECLARE(avx512)
FT_DECLARE(avx512vnni)
FT_DECLARE(avx512bf16)
FT_DECLARE(amx)
FT_DECLARE(amxbf16)
#endif

namespace {

// An instruction set, what computes with it, and which processors have it. One that is not the best
// choice everywhere says where; elsewhere it runs only if $FT_CPU_ISA names it.
struct Isa {
  const char* name;
  const Primitives *primitives, *int8_primitives;
  bool (*is_supported)();
  bool (*is_fast)();
};

bool Always() { return true; }

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
// vdpbf16ps multiplies twice as many numbers as a float32 instruction. AMD's processors start as
// many of them; Intel's take so much longer that BERT-base's products come to 80 GFLOP/s in
// bfloat16 where float32 has 150 (one core of an Emerald Rapids Xeon, batch 8, length 128): there
// what AMX cannot take computes in float32.
bool IsAvx512Bf16Fast() { return !__builtin_cpu_is("intel"); }
// CPUID leaf 7, EDX: tiles, and their products of int8 and of bfloat16. Linux gives the registers
// to a process that has asked for them, which holds for all its threads.
bool HasAmx() {
  unsigned eax, ebx, ecx, edx = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBfloat16 | kTile | kInt8;
  if (!HasAvx512Bf16() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's
  return (edx & kAll) == kAll && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// From the slowest to the fastest.
constexpr Isa kIsas[] = {
    {"generic", &generic::kPrimitives, &generic::kInt8Primitives, Always, Always},
#ifdef __x86_64__
    {"avx2", &avx2::kPrimitives, &avx2::kInt8Primitives, HasAvx2, Always},
    {"avxvnni", &avxvnni::kPrimitives, &avxvnni::kInt8Primitives, HasAvxVnni, Always},
    {"avx512", &avx512::kPrimitives, &avx512::kInt8Primitives, HasAvx512, Always},
    {"avx512vnni", &avx512vnni::kPrimitives, &avx512vnni::kInt8Primitives, HasAvx512Vnni, Always},
    {"avx512bf16", &avx512bf16::kPrimitives, &avx512bf16::kInt8Primitives, HasAvx512Bf16,
     IsAvx512Bf16Fast},
    {"amx", &amx::kPrimitives, &amx::kInt8Primitives, HasAmx, Always},
    {"amx", &amxbf16::kPrimitives, &amxbf16::kInt8Primitives, HasAmx, Always},
#endif
};

// Those of kIsas that may run: what this processor has and is fast with, up to $FT_CPU_ISA.
std::vector<const Isa*> Allowed() {
  const char* cap = std::getenv("FT_CPU_ISA");
  const auto is_named = [cap](const Isa& isa) {
    return cap != nullptr && std::strcmp(isa.name, cap) == 0;
  };
  size_t end = 0;
  for (size_t i = 0; i < std::size(kIsas); ++i) {
    if (is_named(kIsas[i])) end = i + 1;
  }
  if (end == 0) end = std::size(kIsas);  // none, or an unknown name
#ifdef __x86_64__
  __builtin_cpu_init();
#endif
  std::vector<const Isa*> allowed;
  for (size_t i = 0; i < end; ++i) {
    const Isa& isa = kIsas[i];
    if (isa.is_supported() && (isa.is_fast() || is_named(isa))) allowed.push_back(&isa);
  }
  return allowed;
}

// The best primitives for activations computed in `type`, or null.
const Primitives* Best(const EncoderConfig& config, DataType type) {
  static const std::vector<const Isa*> allowed = Allowed();
  for (auto isa = allowed.rbegin(); isa != allowed.rend(); ++isa) {
    const Primitives* primitives =
        config.int8_mode != 0 ? (*isa)->int8_primitives : (*isa)->primitives;
    if (primitives->compute_dtype != type) continue;
    // Attention computes in pairs of bfloat16 whatever the other products do.
    const int64_t multiple = primitives->gemm.k_multiple;
    const bool fits = type == DataType::kFloat32 || config.head_size % 2 == 0;
    if (fits && config.hidden_size() % multiple == 0 && config.inner_size % multiple == 0) {
      return primitives;
    }
  }
  return nullptr;
}

}  // namespace

const Primitives& GetPrimitives(const EncoderConfig& config) {
  const Primitives* primitives = nullptr;
  if (config.dtype == DataType::kBFloat16) primitives = Best(config, DataType::kBFloat16);
  // The generic ones of float32 fit everything.
  return primitives != nullptr ? *primitives : *Best(config, DataType::kFloat32);
}

void Convert(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count) {
  if (count == 0) return;  // the pointers may be null, which memcpy does not allow
  if (x_dtype == y_dtype) {
    std::memcpy(y, x, count * SizeOf(x_dtype));
    return;
  }
  static const Primitives& primitives = *Best(EncoderConfig(), DataType::kFloat32);
  primitives.convert(x, x_dtype, y, y_dtype, count);
}

}  // namespace ft::cpu
