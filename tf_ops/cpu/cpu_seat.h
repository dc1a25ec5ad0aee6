// Which CPU a thread works on.
#pragma once

namespace ft::cpu {

// Held by a thread that works for a while, beside others of the same process.
//
// Linux puts a thread that it wakes on the CPU where it ran last, or where the one that woke it
// runs, also where that one is busy, and finds an idle CPU for it only at a later tick, which are
// milliseconds apart. A thread that takes a seat where another has one already moves to a CPU where
// nobody has, of those that it is allowed; what it is allowed stays the same. Where it can't move,
// or where all CPUs are taken, it stays.
class CpuSeat {
 public:
  CpuSeat();
  ~CpuSeat();
  CpuSeat(const CpuSeat&) = delete;
  CpuSeat& operator=(const CpuSeat&) = delete;

  // The CPU when the seat was taken; -1: not known.
  int cpu() const { return cpu_; }

 private:
  int cpu_ = -1;
};

}  // namespace ft::cpu
