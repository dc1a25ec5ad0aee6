// What the tests of the CUDA backend share: counting checks, device memory, random numbers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/reference_layer.h"
#include "tf_ops/core/types.h"
#include "tf_ops/cuda/device_context.h"
#include "tf_ops/cuda/encoder.h"

namespace ft::cuda::testing {

using reference::Doubles;

inline int failures = 0, cases = 0;

inline void Check(bool ok, const std::string& what) {
  ++cases;
  if (!ok) ++failures;
  printf("%s %s\n", ok ? "ok    " : "FAILED", what.c_str());
  fflush(stdout);
}

inline void MustBeOk(const Status& status, const std::string& what) {
  if (status.ok()) return;
  Check(false, what + ": " + status.message());
}

inline void MustBeOk(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  printf("FAILED %s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}

inline std::mt19937_64 generator;

// Device memory that holds `values` in `dtype`; `values` become what is held.
class Device {
 public:
  explicit Device(int64_t bytes) : bytes_(std::max<int64_t>(bytes, 16)) {
    MustBeOk(cudaMalloc(&data_, bytes_), "cudaMalloc");
    MustBeOk(cudaMemset(data_, 0xff, bytes_),
             "poison");  // NaN in all types but int8, where it is -1
  }
  Device(Doubles* values, DataType dtype) : Device(values->size() * SizeOf(dtype)) {
    std::vector<char> host(values->size() * SizeOf(dtype));
    for (size_t i = 0; i < values->size(); ++i) {
      double& v = (*values)[i];
      if (dtype == DataType::kFloat16) {
        const half h = __float2half(static_cast<float>(v));
        v = __half2float(h);
        memcpy(host.data() + 2 * i, &h, 2);
      } else if (dtype == DataType::kBFloat16) {
        const __nv_bfloat16 h = __float2bfloat16(static_cast<float>(v));
        v = __bfloat162float(h);
        memcpy(host.data() + 2 * i, &h, 2);
      } else if (dtype == DataType::kInt8) {
        host[i] = static_cast<char>(static_cast<int>(v));
      } else if (dtype == DataType::kFloat8) {
        const __nv_fp8_e4m3 q(static_cast<float>(v));
        v = static_cast<float>(q);
        memcpy(host.data() + i, &q, 1);
      } else {
        const float f = static_cast<float>(v);
        v = f;
        memcpy(host.data() + 4 * i, &f, 4);
      }
    }
    MustBeOk(cudaMemcpy(data_, host.data(), host.size(), cudaMemcpyHostToDevice), "copy in");
  }
  template <typename Element>
  explicit Device(const std::vector<Element>& values) : Device(values.size() * sizeof(Element)) {
    MustBeOk(
        cudaMemcpy(data_, values.data(), values.size() * sizeof(Element), cudaMemcpyHostToDevice),
        "copy in");
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }

  void* data() const { return data_; }

  Doubles Read(int64_t elems, DataType dtype) const {
    std::vector<char> host(elems * SizeOf(dtype));
    MustBeOk(cudaMemcpy(host.data(), data_, host.size(), cudaMemcpyDeviceToHost), "copy out");
    Doubles values(elems);
    for (int64_t i = 0; i < elems; ++i) {
      if (dtype == DataType::kFloat16) {
        half h;
        memcpy(&h, host.data() + 2 * i, 2);
        values[i] = __half2float(h);
      } else if (dtype == DataType::kBFloat16) {
        __nv_bfloat16 h;
        memcpy(&h, host.data() + 2 * i, 2);
        values[i] = __bfloat162float(h);
      } else if (dtype == DataType::kInt8) {
        values[i] = static_cast<signed char>(host[i]);
      } else if (dtype == DataType::kInt32) {
        int32_t integer;
        memcpy(&integer, host.data() + 4 * i, 4);
        values[i] = integer;
      } else if (dtype == DataType::kFloat8) {
        __nv_fp8_e4m3 q;
        memcpy(&q, host.data() + i, 1);
        values[i] = static_cast<float>(q);
      } else {
        float f;
        memcpy(&f, host.data() + 4 * i, 4);
        values[i] = f;
      }
    }
    return values;
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

inline Doubles Random(int64_t elems, double scale, double mean = 0) {
  std::normal_distribution<double> normal(mean, scale);
  Doubles values(elems);
  for (double& v : values) v = normal(generator);
  return values;
}

// |a - b| / |b|; infinite if a has a NaN.
inline double RelativeError(const Doubles& a, const Doubles& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  if (!(difference >= 0)) return INFINITY;
  return std::sqrt(difference / std::max(norm, 1e-300));
}

// Bounds on RelativeError of one layer.
inline double Bound(DataType dtype) {
  return dtype == DataType::kFloat32 ? 2e-6 : dtype == DataType::kFloat16 ? 1.5e-3 : 1.2e-2;
}

// Microseconds a launch: median of 7 runs of graphs of 20 launches, without overlap of launches.
// `launch` puts number i, 0 to 19, on the stream of the context that it is given.
inline double TimeLaunches(LaunchContext context,
                           const std::function<void(int i, const LaunchContext& on)>& launch) {
  constexpr int kLaunches = 20, kReplays = 5;
  cudaStream_t stream;
  MustBeOk(cudaStreamCreate(&stream), "stream");
  context.stream = stream;
  launch(0, context);
  MustBeOk(cudaStreamSynchronize(stream), "first launch");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MustBeOk(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kLaunches; ++i) launch(i, context);
  MustBeOk(cudaStreamEndCapture(stream, &graph), "capture");
  MustBeOk(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t start, stop;
  MustBeOk(cudaEventCreate(&start), "event");
  MustBeOk(cudaEventCreate(&stop), "event");
  std::vector<double> times;
  for (int run = 0; run < 8; ++run) {  // the first warms up
    MustBeOk(cudaEventRecord(start, stream), "record");
    for (int i = 0; i < kReplays; ++i) MustBeOk(cudaGraphLaunch(exec, stream), "replay");
    MustBeOk(cudaEventRecord(stop, stream), "record");
    MustBeOk(cudaEventSynchronize(stop), "replay");
    float milliseconds;
    MustBeOk(cudaEventElapsedTime(&milliseconds, start, stop), "elapsed");
    if (run > 0) times.push_back(milliseconds * 1e3 / (kLaunches * kReplays));
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[times.size() / 2];
}

// A layer of BERT-base.
inline EncoderConfig BertBaseConfig(DataType dtype) {
  EncoderConfig config;
  config.dtype = dtype;
  config.num_heads = 12;
  config.head_size = 64;
  config.inner_size = 3072;
  return config;
}

// Tunes the products of a layer for 4 sequences of 97 tokens into `directory`; what was found,
// which is printed too.
inline std::vector<std::string> TuneInto(const std::string& directory,
                                         const EncoderConfig& config) {
  std::vector<std::string> report;
  MustBeOk(TuneEncoderGemms(config, 4, 97, false, false, directory, &report), "GEMM test");
  for (const std::string& line : report) printf("       %s\n", line.c_str());
  return report;
}

}  // namespace ft::cuda::testing
