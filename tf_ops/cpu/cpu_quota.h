// The CPU time that Linux gives this process.
#pragma once

#include <string>

namespace ft::cpu {

// How many CPUs the cgroup of this process and those above it let it keep busy, rounded up; 0 where
// none of them has a quota. Both versions of cgroups are known. `root` stands for the folder / (for
// tests): proc/self/cgroup and sys/fs/cgroup below it are read. What is missing or not understood
// there sets no quota.
int ReadCpuQuota(const std::string& root);

// The same of this machine, read at the first call: a quota that is changed later is not noticed.
int CpuQuota();

}  // namespace ft::cpu
