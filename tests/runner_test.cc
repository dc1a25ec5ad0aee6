// core's Runner on the CPU, without a framework: what a front end relies on.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "tests/runner_checks.h"
#include "tf_ops/core/prepared_tensor.h"
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

// A front end that keeps prepared weights itself: anywhere that a tensor may be, for the same
// answers, and refused where they are not for this encoder.
TEST(PreparedTensorTest, IsOpenedForItsEncoderAlone) {
  CpuHost host;
  const EncoderConfig config = runner_checks::SmallConfig();
  const runner_checks::Model model(&host, config, 1);
  Runner runner(config, {}, &cpu::CpuBackend(), std::make_shared<DeviceCaches>(int64_t{1} << 30));
  std::shared_ptr<Encoder> encoder;
  ASSERT_TRUE(runner.CheckWeights(model.weights.layers, &encoder).ok());
  const int64_t bytes = PreparedTensorBytes(*encoder);
  Buffer buffer;
  ASSERT_TRUE(host.Allocate(bytes + kTensorAlignment, &buffer).ok());
  char* const tensor = static_cast<char*>(buffer.get()) + kTensorAlignment;
  ASSERT_TRUE(PrepareTensor(*encoder, model.weights.layers, tensor, tensor, host.context()).ok());

  const int64_t hidden = config.hidden_size();
  const std::vector<float> x(2 * 5 * hidden, 0.5f);
  EncoderInputs inputs;
  inputs.hidden_states = {x.data(), DataType::kFloat32, {2, 5, hidden}};
  inputs.sequence_length = {nullptr, DataType::kInt32, {0}};
  inputs.attention_mask = {nullptr, DataType::kFloat32, {0}};
  EncoderPlan plan;
  ASSERT_TRUE(PlanEncoder(config, inputs, &plan).ok());
  PreparedEncoder cached, own = {encoder, nullptr};
  ASSERT_TRUE(runner.Prepare(model.weights, host.context(), &cached).ok());
  const TensorView view = {tensor, DataType::kUint8, {bytes}};
  ASSERT_TRUE(OpenPreparedTensor(*encoder, view, view.data, &own.weights).ok());
  std::vector<float> expected(x.size(), NAN), got(x.size(), NAN);
  ASSERT_TRUE(runner.Run(cached, inputs, plan, {expected.data()}, host.context()).ok());
  ASSERT_TRUE(runner.Run(own, inputs, plan, {got.data()}, host.context()).ok());
  EXPECT_EQ(got, expected);
  EXPECT_FALSE(std::isnan(got[0]));

  const auto refused = [&](const Encoder& other, const TensorView& given, const char* part) {
    const Status status = OpenPreparedTensor(other, given, given.data, &own.weights);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  };
  refused(*encoder, {tensor, DataType::kFloat32, {bytes}}, "prepared is float32");
  refused(*encoder, {tensor, DataType::kUint8, {bytes - 1}}, "bytes, expected");
  refused(*encoder, {tensor, DataType::kUint8, {0}}, "expected uint8 as prepare_encoder");
  refused(*encoder, {tensor + 4, DataType::kUint8, {bytes}}, "no multiple of 64");
  refused(*encoder, {tensor + kAlignment, DataType::kUint8, {bytes - kAlignment}},
          "does not begin");
  EncoderConfig wider = config;
  wider.num_heads = 1;
  wider.head_size = 64;
  Runner other(wider, {}, &cpu::CpuBackend(), std::make_shared<DeviceCaches>(0));
  std::shared_ptr<Encoder> other_encoder;
  ASSERT_TRUE(other.GetEncoder(config.inner_size, &other_encoder).ok());
  refused(*other_encoder, view, "2 heads of 32, inner size 160, int8_mode 0; expected");
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
