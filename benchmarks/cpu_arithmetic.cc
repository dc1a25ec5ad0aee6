// What the CPUs give where nothing but arithmetic counts: threads that multiply and add in
// registers, each on a CPU of its own. On a virtual machine other machines' work shares the cores,
// so that this, too, grows less than the number of threads.
//
// cpu_arithmetic THREADS SECONDS [FIRST_CPU]
// Prints one JSON object: gflops of all threads together, and of the slowest and the fastest. The
// threads take the CPUs that this process may use from number FIRST_CPU of them on.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// A product and a sum are one instruction also where the compiler follows ISO C++.
#pragma GCC optimize("fp-contract=fast")

// Adds `steps` times to each of kSums vectors, which do not wait for one another: more than the
// units have under way. Written once, compiled for each instruction set below.
#define FT_MULTIPLY_AND_ADD(name, instructions, bytes, kSums)                        \
  __attribute__((target(instructions), noinline)) float name(int64_t steps) {        \
    typedef float Vec __attribute__((vector_size(bytes)));                           \
    Vec x = Vec{} + 1.0f, y = Vec{} + 1e-9f, sums[kSums];                            \
    _Pragma("GCC unroll 24") for (int i = 0; i < kSums; ++i) {                       \
      sums[i] = Vec{} + static_cast<float>(i);                                       \
    }                                                                                \
    for (int64_t step = 0; step < steps; ++step) {                                   \
      asm volatile("" : "+v"(x), "+v"(y)); /* not known beforehand */                \
      _Pragma("GCC unroll 24") for (int i = 0; i < kSums; ++i) { sums[i] += x * y; } \
    }                                                                                \
    Vec total = sums[0];                                                             \
    _Pragma("GCC unroll 24") for (int i = 1; i < kSums; ++i) { total += sums[i]; }   \
    return total[0];                                                                 \
  }
FT_MULTIPLY_AND_ADD(Avx512, "avx512f", 64, 24)
FT_MULTIPLY_AND_ADD(Avx2, "avx2,fma", 32, 12)
FT_MULTIPLY_AND_ADD(Sse, "sse2", 16, 12)

struct Kernel {
  float (*run)(int64_t steps);
  double flops_per_step;
};

Kernel BestKernel() {
  if (__builtin_cpu_supports("avx512f")) return {Avx512, 2.0 * 16 * 24};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {Avx2, 2.0 * 8 * 12};
  return {Sse, 2.0 * 4 * 12};
}

std::vector<int> Cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<int> cpus = Cpus();
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0;
  if (argc < 3 || argc > 4 || num_threads < 1 || num_threads > static_cast<int>(cpus.size()) ||
      seconds <= 0) {
    std::fprintf(stderr, "usage: %s THREADS SECONDS [FIRST_CPU]; this process has %zu CPUs\n",
                 argv[0], cpus.size());
    return 2;
  }
  const auto found = std::find(cpus.begin(), cpus.end(), argc > 3 ? std::atoi(argv[3]) : cpus[0]);
  const size_t first = found == cpus.end() ? 0 : found - cpus.begin();
  const Kernel kernel = BestKernel();
  std::vector<double> rates(num_threads);
  std::atomic<int> num_ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpus[(first + i) % cpus.size()], &set);
      sched_setaffinity(0, sizeof(set), &set);
      ++num_ready;
      while (num_ready < num_threads) {
      }
      constexpr int64_t kSteps = 2000;
      const Clock::time_point begin = Clock::now();
      double flops = 0, spent = 0;
      volatile float result = 0;
      while (spent < seconds) {
        result = kernel.run(kSteps);
        flops += kernel.flops_per_step * kSteps;
        spent = std::chrono::duration<double>(Clock::now() - begin).count();
      }
      (void)result;
      rates[i] = flops / spent * 1e-9;
    });
  }
  for (std::thread& thread : threads) thread.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  std::printf("{\"gflops\": %.1f, \"slowest\": %.1f, \"fastest\": %.1f}\n", total,
              *std::min_element(rates.begin(), rates.end()),
              *std::max_element(rates.begin(), rates.end()));
  return 0;
}
