#include "tf_ops/core/encoder.h"

#include <algorithm>
#include <utility>

namespace ft {

Status ValidateAttributes(const EncoderConfig& config) {
  // Keeps H * H well inside int64.
  constexpr int64_t kMaxSize = 1 << 20;
  if (config.num_heads > kMaxSize || config.head_size > kMaxSize) {
    return InvalidArgument("head_num and size_per_head are ", config.num_heads, " and ",
                           config.head_size, ", expected at most ", kMaxSize, " each");
  }
  if (!(config.layernorm_epsilon >= 0.0f)) {
    return InvalidArgument("layernorm_epsilon is ", config.layernorm_epsilon,
                           ", expected a number >= 0");
  }
  return OkStatus();
}

Status ParseActivation(const std::string& name, Activation* activation) {
  const std::pair<const char*, Activation> known[] = {{"gelu_tanh", Activation::kGeluTanh},
                                                      {"gelu_erf", Activation::kGeluErf},
                                                      {"relu", Activation::kRelu}};
  for (const auto& [known_name, value] : known) {
    if (name != known_name) continue;
    *activation = value;
    return OkStatus();
  }
  return InvalidArgument("activation is ", name, ", expected gelu_tanh, gelu_erf or relu");
}

Status ParseInt8Mode(int64_t value, int* int8_mode) {
  if (value < 0 || value > 3) {
    return InvalidArgument("int8_mode is ", value, ", expected 0, 1, 2 or 3");
  }
  *int8_mode = static_cast<int>(value);
  return OkStatus();
}

Status ParseFp8Mode(int64_t value, int int8_mode, int* fp8_mode) {
  if (value < 0 || value > 1) return InvalidArgument("fp8_mode is ", value, ", expected 0 or 1");
  if (value != 0 && int8_mode != 0) {
    return InvalidArgument("fp8_mode is ", value, " and int8_mode is ", int8_mode,
                           ", expected one of them to be 0");
  }
  *fp8_mode = static_cast<int>(value);
  return OkStatus();
}

Status ValidateNumOutputs(const EncoderConfig& config, int64_t num_outputs) {
  if (num_outputs == 1 || num_outputs == config.num_layers) return OkStatus();
  return InvalidArgument("num_outputs is ", num_outputs,
                         ", expected 1 or num_layers = ", config.num_layers);
}

Status ValidateConfig(const EncoderConfig& config) {
  FT_RETURN_IF_ERROR(ValidateAttributes(config));
  if (config.dtype != DataType::kFloat32 && config.dtype != DataType::kFloat16 &&
      config.dtype != DataType::kBFloat16) {
    return InvalidArgument("dtype is ", Name(config.dtype),
                           ", expected float32, float16 or bfloat16");
  }
  const struct {
    const char* name;
    int64_t value;
  } sizes[] = {{"head_num", config.num_heads},
               {"size_per_head", config.head_size},
               {"inner size", config.inner_size},
               {"number of layers", config.num_layers}};
  for (const auto& size : sizes) {
    if (size.value <= 0) {
      return InvalidArgument(size.name, " is ", size.value, ", expected at least 1");
    }
  }
  int int8_mode, fp8_mode;
  FT_RETURN_IF_ERROR(ParseInt8Mode(config.int8_mode, &int8_mode));
  FT_RETURN_IF_ERROR(ParseFp8Mode(config.fp8_mode, int8_mode, &fp8_mode));
  // 128 * 127 * 131072 is the largest sum of int8 products that int32 holds.
  constexpr int64_t kMaxInt8Sum = 131072;
  if (config.int8_mode != 0 && std::max(config.hidden_size(), config.inner_size) > kMaxInt8Sum) {
    return InvalidArgument("hidden and inner size are ", config.hidden_size(), " and ",
                           config.inner_size, ", expected at most ", kMaxInt8Sum,
                           " with int8_mode");
  }
  return OkStatus();
}

Status ValidateBatch(const EncoderConfig& config, const EncoderBatch& batch) {
  if (batch.batch_size < 0 || batch.max_seq_len < 0 || batch.num_tokens < 0) {
    return InvalidArgument("batch_size, max_seq_len and num_tokens are ", batch.batch_size, ", ",
                           batch.max_seq_len, " and ", batch.num_tokens, ", expected at least 0");
  }
  if (batch.outputs.size() != 1 && batch.outputs.size() != static_cast<size_t>(config.num_layers)) {
    return InvalidArgument("number of outputs is ", batch.outputs.size(), ", expected 1 or ",
                           config.num_layers, " (one per layer)");
  }
  const int64_t padded_tokens = batch.batch_size * batch.max_seq_len;
  if (batch.packed) {
    if (batch.seq_offsets == nullptr) {
      return InvalidArgument("seq_offsets is null, expected int32 [", batch.batch_size + 1, "]");
    }
    if (batch.rows() < batch.num_tokens) {
      return InvalidArgument("num_rows is ", batch.num_rows, ", expected at least num_tokens, ",
                             batch.num_tokens);
    }
    if (batch.num_tokens > padded_tokens) {
      return InvalidArgument("num_tokens is ", batch.num_tokens, ", expected at most ",
                             padded_tokens, " = batch ", batch.batch_size, " x length ",
                             batch.max_seq_len);
    }
  } else if (batch.has_padded_tensors) {
    return InvalidArgument("has_padded_tensors is true of rows that are not packed");
  } else if (batch.num_tokens != padded_tokens) {
    return InvalidArgument("num_tokens is ", batch.num_tokens, ", expected ", padded_tokens,
                           " = batch ", batch.batch_size, " x length ", batch.max_seq_len);
  }
  if (batch.num_tokens == 0) return OkStatus();
  if (batch.input == nullptr) return InvalidArgument("input is null");
  for (const void* output : batch.outputs) {
    if (output == nullptr) return InvalidArgument("an output is null");
    if (output == batch.input) return InvalidArgument("an output is the input");
  }
  return OkStatus();
}

}  // namespace ft
