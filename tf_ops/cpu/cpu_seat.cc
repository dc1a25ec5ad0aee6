#include "tf_ops/cpu/cpu_seat.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>

namespace ft::cpu {

#ifdef __linux__
namespace {

// Those of more CPUs are not known, nor allowed: a cpu_set_t has as many.
constexpr int kMaxCpus = CPU_SETSIZE;

// Seats of each CPU.
std::atomic<int> taken[kMaxCpus];

// A CPU after `cpu` that the thread is allowed and where nobody had a seat, which it has now; -1 if
// there is none. Neighbours are likely to share a cache.
int TakeFree(int cpu, const cpu_set_t& allowed) {
  for (int i = 1; i < kMaxCpus; ++i) {
    const int next = (cpu + i) % kMaxCpus;
    if (!CPU_ISSET(next, &allowed) || taken[next].load(std::memory_order_relaxed) != 0) continue;
    int nobody = 0;
    if (taken[next].compare_exchange_strong(nobody, 1)) return next;
  }
  return -1;
}

}  // namespace

CpuSeat::CpuSeat() {
  const int cpu = sched_getcpu();
  if (cpu < 0 || cpu >= kMaxCpus) return;
  cpu_ = cpu;
  if (taken[cpu].fetch_add(1) == 0) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const int free = TakeFree(cpu, allowed);
  if (free < 0) return;
  cpu_set_t only_free;
  CPU_ZERO(&only_free);
  CPU_SET(free, &only_free);
  // It is there when the first call returns, and stays there as the second gives no reason to move.
  const bool moved = sched_setaffinity(0, sizeof(only_free), &only_free) == 0;
  if (moved) sched_setaffinity(0, sizeof(allowed), &allowed);
  taken[moved ? cpu : free].fetch_sub(1);
  if (moved) cpu_ = free;
}

CpuSeat::~CpuSeat() {
  if (cpu_ >= 0) taken[cpu_].fetch_sub(1);
}
#else
CpuSeat::CpuSeat() = default;
CpuSeat::~CpuSeat() = default;
#endif

}  // namespace ft::cpu
