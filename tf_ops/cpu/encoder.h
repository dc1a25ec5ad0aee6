// The CPU backend of the interface in tf_ops/core/encoder.h.
#pragma once

#include <memory>

#include "tf_ops/core/encoder.h"

namespace ft::cpu {

// float32 computes in float32; float16 too, converting at the edges; bfloat16 in bfloat16 with
// float32 sums where the processor is faster at that (AMX, or AMD's AVX512_BF16), else in float32.
// Any sizes.
// Errors: InvalidArgument if `config` is not valid (ValidateConfig).
Status CreateCpuEncoder(const EncoderConfig& config, std::unique_ptr<Encoder>* encoder);

}  // namespace ft::cpu
