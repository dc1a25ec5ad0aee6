// core's Runner on the CPU, without a framework: what a front end relies on.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "tests/runner_checks.h"
#include "tf_ops/cpu/backend.h"
#include "tf_ops/cpu/thread_pool.h"

namespace ft {
namespace {

class CpuHost : public runner_checks::Host {
 public:
  const Backend& backend() const override { return cpu::CpuBackend(); }
  ExecutionContext context() override {
    ExecutionContext context;
    context.pool = &pool_;
    context.allocator = this;
    return context;
  }
  void Write(const void* from, int64_t bytes, void* to) override { std::memcpy(to, from, bytes); }
  void Read(const void* from, int64_t bytes, void* to) override { std::memcpy(to, from, bytes); }

 protected:
  Buffer AllocateMemory(int64_t bytes) override {
    return Buffer(std::aligned_alloc(kAlignment, AlignUp(bytes + 1, kAlignment)), &std::free);
  }

 private:
  cpu::StdThreadPool pool_{2};
};

TEST(RunnerTest, KeepsItsContract) {
  CpuHost host;
  runner_checks::CheckAll(&host,
                          [](bool holds, const std::string& what) { EXPECT_TRUE(holds) << what; });
}

// Many threads come with weights that are new: they are prepared once.
TEST(RunnerTest, ThreadsPrepareOnce) {
  CpuHost host;
  EncoderConfig config = runner_checks::SmallConfig();
  config.head_size = 128;
  config.inner_size = 2048;
  const auto cache = std::make_shared<DeviceCaches>(int64_t{1} << 30);
  Runner runner(config, {}, &cpu::CpuBackend(), cache);
  for (unsigned round = 0; round < 10; ++round) {
    const runner_checks::Model model(&host, config, round);
    const int64_t before = cache->weights.num_prepared();
    std::atomic<int> waiting{8};
    std::vector<PreparedEncoder> prepared(8);
    std::vector<std::thread> threads;
    for (PreparedEncoder& result : prepared) {
      threads.emplace_back([&] {
        --waiting;
        while (waiting > 0) std::this_thread::yield();
        EXPECT_TRUE(runner.Prepare(model.weights, host.context(), &result).ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(cache->weights.num_prepared(), before + 1);
    for (const PreparedEncoder& result : prepared) EXPECT_EQ(result.weights, prepared[0].weights);
  }
}

}  // namespace
}  // namespace ft
