// The CUDA backend of the encoder interface.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tf_ops/core/encoder.h"
#include "tf_ops/cuda/gemm/norm/norm_gemm.h"

namespace ft {
namespace cuda {

struct CudaEncoderOptions {
  // Time the kernels and cuBLASLt's algorithms of each product at the first call of a new shape.
  bool allow_gemm_test = false;
  // Where gemm_config.in and half_gemm_config.in lie, of int8_mode igemm_config.in, of split
  // products split_gemm_config.in: what was tuned is read from it and written to it. Empty: no
  // file.
  std::string gemm_config_dir;
  // Replay a CUDA graph when sizes and addresses of a call were seen before.
  bool use_graphs = true;
  int max_graphs = 64;
  // Up to this many tokens products use the kernel for few rows. -1: the measured default.
  int64_t few_rows = -1;
  // float16 and bfloat16: products by cuBLASLt, also where kernels of CUTLASS are faster.
  bool cublaslt_only = false;
  // INT8: products by the kernels for any size alone, also where others are faster.
  bool plain_int8 = false;
  // INT8 and FP8: products and the layer norms after them are separate kernels, also where one for
  // both is faster.
  bool separate_norms = false;
  // Else this one kernel takes all that it can, for comparisons.
  std::optional<NormGemmKind> norm_kind;
  // float32: products by IEEE arithmetic on the CUDA cores, also where split ones
  // (gemm/split/split_gemm.h), on tensor cores and as accurate, are faster.
  bool ieee_float32 = false;
};

// An encoder for the CUDA devices of this process; the device that is current in a call is used.
// Pointers of calls are device pointers, context.stream is a cudaStream_t. Nothing is launched
// here: this succeeds on a machine without CUDA, where Run then returns FailedPrecondition.
Status CreateCudaEncoder(const EncoderConfig& config, const CudaEncoderOptions& options,
                         std::unique_ptr<Encoder>* encoder);

// Whether FT_IEEE_FLOAT32 asks for CudaEncoderOptions::ieee_float32.
bool IeeeFloat32Requested();

// GEMM test of the sizes of one batch (what allow_gemm_test does). Rows go to gemm_config.in and
// half_gemm_config.in in `config_dir`, of int8_mode to igemm_config.in, of split products to
// split_gemm_config.in; `report` gets one line per product and file.
Status TuneEncoderGemms(const EncoderConfig& config, int64_t batch_size, int64_t seq_len,
                        bool allow_tf32, bool ieee_float32, const std::string& config_dir,
                        std::vector<std::string>* report);

}  // namespace cuda
}  // namespace ft
