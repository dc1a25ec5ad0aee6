// encoder_gemm <batch> <seq> <heads> <size> <is_use_fp16> <int8_mode>
// Times what can compute the products of a BERT layer, and writes gemm_config.in, of float16
// half_gemm_config.in too, with int8_mode 1 to 3 igemm_config.in, of float32's split products
// split_gemm_config.in. FT_IEEE_FLOAT32=1: float32 without split products.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "tf_ops/cuda/encoder.h"
#include "tf_ops/cuda/gemm/gemm.h"

int main(int argc, char** argv) {
  if (argc != 7) {
    printf(
        "[ERROR] encoder_gemm batch_size seq_len head_num size_per_head is_use_fp16 int8_mode\n"
        "e.g., ./encoder_gemm 1 32 12 64 1 0\n");
    return 1;
  }
  const long batch_size = atol(argv[1]), seq_len = atol(argv[2]);
  ft::EncoderConfig config;
  config.num_heads = atol(argv[3]);
  config.head_size = atol(argv[4]);
  config.inner_size = 4 * config.hidden_size();
  if (std::string(argv[6]) == "fp8") {
    config.fp8_mode = 1;
  } else {
    config.int8_mode = atoi(argv[6]);
  }
  config.dtype = atoi(argv[5]) ? ft::DataType::kFloat16 : ft::DataType::kFloat32;
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) {
    printf("[ERROR] no CUDA device: %s\n", cudaGetErrorString(error));
    return 1;
  }
  if (batch_size < 1 || seq_len < 1) {
    printf("[ERROR] batch_size and seq_len are %s and %s, expected at least 1\n", argv[1], argv[2]);
    return 1;
  }
  printf("Device %s\n***Encoder Gemm Testing Begin***\n", properties.name);
  std::vector<std::string> report;
  const std::string directory = ft::cuda::CommandLineGemmConfigDir();
  const ft::Status status = ft::cuda::TuneEncoderGemms(
      config, batch_size, seq_len, false, ft::cuda::IeeeFloat32Requested(), directory, &report);
  for (const std::string& line : report) printf("%s\n", line.c_str());
  if (!status.ok()) {
    printf("[ERROR] %s\n", status.message().c_str());
    return 1;
  }
  printf("The configuration in %s is written\n***Encoder Gemm Testing End***\n", directory.c_str());
  return 0;
}
