#include "tf_ops/cpu/cpu_quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

namespace ft::cpu {
namespace {

// CPUs of one group: microseconds of CPU time over those of a period; 0: no quota.
double QuotaOfGroup(const std::string& folder) {
  double quota = 0, period = 0;
  std::ifstream both(folder + "/cpu.max");  // version 2: "max 100000" or "200000 100000"
  if (both >> quota >> period && quota > 0 && period > 0) return quota / period;
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");  // version 1: -1 is none
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    return quota / period;
  }
  return 0;
}

// Where the hierarchies of a line of /proc/self/cgroup may be mounted, below `mounts`; none for
// those that have no quota of CPU time.
std::vector<std::string> Mounts(const std::string& mounts, const std::string& controllers) {
  if (controllers.empty()) return {mounts, mounts + "/unified"};  // version 2
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "cpu") return {mounts + "/" + controllers, mounts + "/cpu"};
  }
  return {};
}

}  // namespace

int ReadCpuQuota(const std::string& root) {
  double least = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  // ID:CONTROLLERS:PATH
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    for (const std::string& mount :
         Mounts(root + "/sys/fs/cgroup", line.substr(first + 1, second - first - 1))) {
      // A container may see its own group mounted, under a path that only its host knows: the mount
      // itself is always looked at.
      std::string path = line.substr(second + 1);
      while (true) {
        const double quota = QuotaOfGroup(mount + path);
        if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
        if (path.empty()) break;
        path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
      }
    }
  }
  // Rounding up leaves no CPU time unused; a period's last part then passes without work.
  return static_cast<int>(std::ceil(std::min(least, 1e6)));
}

int CpuQuota() {
  static const int quota = ReadCpuQuota("");
  return quota;
}

}  // namespace ft::cpu
