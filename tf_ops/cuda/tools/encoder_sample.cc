// encoder_sample <batch> <layers> <seq> <heads> <size> <is_use_fp16> <is_remove_padding>
// <int8_mode>
//                [<allow_gemm_test>]
// Times the encoder on random data without TensorFlow. All sequences have length S, or S/2 with
// padding removed. Environment: FT_SAMPLE_MASKED=1 keeps S rows but masks the keys from S/2 on, by
// lengths, FT_SAMPLE_MASK_TENSOR=1 by a mask [B,S,S]; FT_SAMPLE_TF32=1 allows TF32;
// FT_IEEE_FLOAT32=1 computes float32 without split products; FT_SAMPLE_FEW_ROWS sets the
// limit of the kernel for few rows; FT_SAMPLE_CUBLASLT=1 computes float16's products without
// CUTLASS, FT_SAMPLE_PLAIN_INT8=1 int8_mode's; FT_SAMPLE_SEPARATE_NORMS=1 computes layer norms by
// kernels of their own, FT_SAMPLE_NORM_KIND=0 or 1 by one kernel with the product before them where
// it can; FT_SAMPLE_PROFILE=1 runs once, without graphs, for a profiler.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tf_ops/core/scales.h"
#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace {

constexpr int kIterations = 50;

bool Flag(const char* name) {
  const char* value = getenv(name);
  return value != nullptr && atoi(value) != 0;
}

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  printf("[ERROR] %s\n", cudaGetErrorString(error));
  exit(1);
}

void Check(const ft::Status& status) {
  if (status.ok()) return;
  printf("[ERROR] %s\n", status.message().c_str());
  exit(1);
}

// The values in device memory, kept until the end.
void* Upload(const std::vector<float>& values, ft::DataType dtype) {
  std::vector<uint16_t> halves(dtype == ft::DataType::kFloat32 ? 0 : values.size());
  for (size_t i = 0; i < halves.size(); ++i) {
    const _Float16 h = static_cast<_Float16>(values[i]);
    memcpy(&halves[i], &h, sizeof(h));
  }
  const size_t bytes = values.size() * SizeOf(dtype);
  void* memory;
  Check(cudaMalloc(&memory, bytes));
  Check(cudaMemcpy(memory, halves.empty() ? static_cast<const void*>(values.data()) : halves.data(),
                   bytes, cudaMemcpyHostToDevice));
  return memory;
}

// Normal numbers times `scale` plus `mean`.
void* Random(int64_t elems, ft::DataType dtype, float scale, float mean = 0.f) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> values(elems);
  for (float& v : values) v = normal(generator);
  return Upload(values, dtype);
}

// Integers in [-127,127].
void* RandomIntegers(int64_t elems) {
  std::mt19937 generator(2);
  std::uniform_int_distribution<int> integer(-127, 127);
  std::vector<int8_t> values(elems);
  for (int8_t& v : values) v = static_cast<int8_t>(integer(generator));
  void* memory;
  Check(cudaMalloc(&memory, elems));
  Check(cudaMemcpy(memory, values.data(), elems, cudaMemcpyHostToDevice));
  return memory;
}

// Ranges as a model of this size has them: the matrices' integers stand for numbers of deviation
// 0.02.
void* MakeScaleList(const ft::EncoderConfig& config) {
  std::vector<float> list(ft::ScaleListSize(config), 0.035f);
  const std::pair<int, float> slots[] = {{0, 4.f},  {9, 2.f},  {10, 2.f}, {11, 4.f},
                                         {13, 3.f}, {14, 2.f}, {15, 4.f}};
  for (const auto& [slot, range] : slots) list[4 * slot] = range;
  return Upload(list, ft::DataType::kFloat32);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9 && argc != 10) {
    printf(
        "[ERROR] encoder_sample batch_size num_layers seq_len head_num size_per_head is_use_fp16 "
        "is_remove_padding int8_mode [allow_gemm_test]\n"
        "e.g., ./encoder_sample 1 12 32 12 64 1 0 0 0\n");
    return 1;
  }
  ft::EncoderConfig config;
  if (std::string(argv[8]) == "fp8") {
    config.fp8_mode = 1;
  } else {
    config.int8_mode = atoi(argv[8]);
  }
  ft::EncoderBatch batch;
  batch.batch_size = atol(argv[1]);
  config.num_layers = atol(argv[2]);
  batch.max_seq_len = atol(argv[3]);
  config.num_heads = atol(argv[4]);
  config.head_size = atol(argv[5]);
  config.dtype = atoi(argv[6]) ? ft::DataType::kFloat16 : ft::DataType::kFloat32;
  batch.packed = atoi(argv[7]) != 0;
  config.inner_size = 4 * config.hidden_size();
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0));
  printf("Device %s\n", properties.name);
  constexpr double kGiB = 1 << 30;
  size_t free_bytes, total_bytes;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes));
  printf("before allocate free %.2f GB total %.2f GB\n", free_bytes / kGiB, total_bytes / kGiB);

  ft::cuda::CudaEncoderOptions options;
  options.allow_gemm_test = argc == 10 && atoi(argv[9]) != 0;
  options.gemm_config_dir = ft::cuda::CommandLineGemmConfigDir();
  options.use_graphs = !Flag("FT_SAMPLE_PROFILE");
  options.cublaslt_only = Flag("FT_SAMPLE_CUBLASLT");
  options.plain_int8 = Flag("FT_SAMPLE_PLAIN_INT8");
  options.separate_norms = Flag("FT_SAMPLE_SEPARATE_NORMS");
  if (const char* kind = getenv("FT_SAMPLE_NORM_KIND")) {
    const int number = atoi(kind);
    if (number < 0 || number >= ft::cuda::kNumNormGemmKinds) {
      printf("[ERROR] FT_SAMPLE_NORM_KIND is %s, expected 0 to %d\n", kind,
             ft::cuda::kNumNormGemmKinds - 1);
      return 1;
    }
    options.norm_kind = static_cast<ft::cuda::NormGemmKind>(number);
  }
  options.ieee_float32 = ft::cuda::IeeeFloat32Requested();
  if (const char* rows = getenv("FT_SAMPLE_FEW_ROWS")) options.few_rows = atol(rows);
  std::unique_ptr<ft::Encoder> encoder;
  Check(ft::cuda::CreateCudaEncoder(config, options, &encoder));

  const int64_t h = config.hidden_size();
  const int64_t length =
      batch.packed ? std::max<int64_t>(1, batch.max_seq_len / 2) : batch.max_seq_len;
  batch.num_tokens = batch.batch_size * length;
  std::vector<ft::LayerWeights> layers(config.num_layers);
  std::vector<void*> memory;
  for (auto& layer : layers) {
    for (int f = 0; f < ft::kWeightsPerLayer; ++f) {
      ft::TensorView& view = layer.*ft::WeightFields()[f].view;
      const bool is_matrix = ft::WeightFields()[f].is_quantized;
      view.dtype = is_matrix ? config.matrix_dtype() : config.dtype;
      view.shape = ft::WeightShape(config, f);
      const int64_t elems = ft::NumElements(view.shape);
      const bool gamma = f == 9 || f == 15;
      // One set of random numbers serves all layers; each layer has its own packed copy.
      if (&layer == &layers[0] && view.dtype == ft::DataType::kInt8) {
        view.data = RandomIntegers(elems);
      } else if (&layer == &layers[0]) {
        view.data =
            Random(elems, config.dtype, view.shape.size() == 2 ? 0.02f : 0.1f, gamma ? 1.f : 0.f);
      } else {
        view.data = (layers[0].*ft::WeightFields()[f].view).data;
      }
    }
    if (!config.is_quantized()) continue;
    layer.amax_list = {&layer == &layers[0] ? MakeScaleList(config) : layers[0].amax_list.data,
                       ft::DataType::kFloat32,
                       {ft::ScaleListSize(config)}};
  }
  batch.input = Random(batch.num_tokens * h, config.dtype, 1.f);
  void* output;
  Check(cudaMalloc(&output, batch.num_tokens * h * SizeOf(config.dtype)));
  batch.outputs = {output};
  std::vector<int32_t> numbers;
  for (int64_t b = 0; b <= batch.batch_size; ++b) {
    numbers.push_back(static_cast<int32_t>(batch.packed ? b * length : batch.max_seq_len / 2));
  }
  void* numbers_memory;
  Check(cudaMalloc(&numbers_memory, numbers.size() * 4));
  Check(cudaMemcpy(numbers_memory, numbers.data(), numbers.size() * 4, cudaMemcpyHostToDevice));
  if (batch.packed) {
    batch.seq_offsets = static_cast<int32_t*>(numbers_memory);
  } else if (Flag("FT_SAMPLE_MASKED")) {
    batch.key_lengths = static_cast<int32_t*>(numbers_memory);
  } else if (Flag("FT_SAMPLE_MASK_TENSOR")) {
    const int64_t s = batch.max_seq_len;
    std::vector<float> mask(batch.batch_size * s * s);
    for (size_t e = 0; e < mask.size(); ++e) mask[e] = static_cast<int64_t>(e) % s < s / 2 ? 1 : 0;
    batch.attention_mask = Upload(mask, config.dtype);
  }
  // The stream does not wait for copies.
  Check(cudaDeviceSynchronize());
  cudaStream_t stream;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ft::ExecutionContext execution;
  execution.stream = stream;
  execution.allow_tf32 = Flag("FT_SAMPLE_TF32");
  void *packed, *workspace;
  Check(cudaMalloc(&packed, encoder->PreparedWeightBytes()));
  Check(encoder->PrepareWeights(layers, packed, execution));
  int64_t workspace_bytes;
  Check(encoder->WorkspaceBytes(batch, execution, &workspace_bytes));
  Check(cudaMalloc(&workspace, workspace_bytes));
  size_t free_after;
  Check(cudaMemGetInfo(&free_after, &total_bytes));
  printf("After allocate free %.2f GB used %.2f GB total %.2f GB\n", free_after / kGiB,
         (total_bytes - free_after) / kGiB, total_bytes / kGiB);
  if (Flag("FT_SAMPLE_PROFILE")) {
    Check(encoder->Run(batch, packed, workspace, execution));
    Check(cudaStreamSynchronize(stream));
    return 0;
  }
  // Median over several runs of 50 forwards, which the stream holds back to back.
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int run = 0; run < 8; ++run) {
    Check(cudaEventRecord(begin, stream));
    for (int i = 0; i < kIterations; ++i) Check(encoder->Run(batch, packed, workspace, execution));
    Check(cudaEventRecord(end, stream));
    Check(cudaStreamSynchronize(stream));
    float milliseconds;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (run > 0) times.push_back(milliseconds / kIterations);
  }
  std::sort(times.begin(), times.end());
  printf("[INFO] batch_size %ld seq_len %ld layer %ld FT-CPP-time %.4f ms ( %d iterations)\n",
         static_cast<long>(batch.batch_size), static_cast<long>(batch.max_seq_len),
         static_cast<long>(config.num_layers), times[times.size() / 2], kIterations);
  return 0;
}
