#include "tf_ops/core/prepared_tensor.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace ft {
namespace {

constexpr char kMagic[] = "fastertransformer weights 1: ";

// Says all that the prepared form depends on, as WeightCache compares it.
std::string Label(const Encoder& encoder) {
  const EncoderConfig& config = encoder.config();
  return StrCat(kMagic, encoder.weight_layout(), ", ", Name(config.dtype), ", ", config.num_layers,
                " layers, ", config.num_heads, " heads of ", config.head_size, ", inner size ",
                config.inner_size, ", int8_mode ", config.int8_mode,
                config.fp8_mode != 0 ? StrCat(", fp8_mode ", config.fp8_mode) : "");
}

}  // namespace

int64_t PreparedTensorBytes(const Encoder& encoder) {
  return kAlignment + encoder.PreparedWeightBytes();
}

std::string PreparedTensorLabel(const Encoder& encoder) {
  std::string label = Label(encoder);
  label.resize(kAlignment, '\0');
  return label;
}

Status PrepareTensor(const Encoder& encoder, const std::vector<LayerWeights>& layers, void* tensor,
                     void* label, const ExecutionContext& context) {
  const std::string text = PreparedTensorLabel(encoder);
  if (text.back() != '\0') return Internal("no room for the label: ", text);
  std::memcpy(label, text.data(), kAlignment);
  return encoder.PrepareWeights(layers, static_cast<char*>(tensor) + kAlignment, context);
}

Status CheckPreparedTensor(const TensorView& tensor) {
  if (tensor.dtype != DataType::kUint8 || tensor.shape.size() != 1 ||
      tensor.shape[0] < kAlignment) {
    return InvalidArgument("prepared is ", Name(tensor.dtype), " ", ShapeString(tensor.shape),
                           ", expected uint8 as prepare_encoder returns it");
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % kTensorAlignment != 0) {
    return InvalidArgument("prepared begins at an address that is no multiple of ",
                           kTensorAlignment, ", expected a tensor of its own, no view");
  }
  return OkStatus();
}

Status OpenPreparedTensor(const Encoder& encoder, const TensorView& tensor, const void* label_bytes,
                          std::shared_ptr<const PreparedWeights>* prepared) {
  FT_RETURN_IF_ERROR(CheckPreparedTensor(tensor));
  const char* const text = static_cast<const char*>(label_bytes);
  const std::string label(text, std::find(text, text + kAlignment, '\0'));
  if (label.rfind(kMagic, 0) != 0) {
    return InvalidArgument("prepared does not begin as what prepare_encoder returns does");
  }
  const std::string expected = Label(encoder);
  const size_t skip = sizeof(kMagic) - 1;
  if (label != expected) {
    return InvalidArgument("prepared is for ", label.substr(skip), "; expected ",
                           expected.substr(skip));
  }
  if (tensor.shape[0] != PreparedTensorBytes(encoder)) {
    return InvalidArgument("prepared has ", tensor.shape[0], " bytes, expected ",
                           PreparedTensorBytes(encoder));
  }
  auto weights = std::make_shared<PreparedWeights>();
  weights->memory =
      Buffer(const_cast<char*>(static_cast<const char*>(tensor.data)) + kAlignment, [](void*) {});
  *prepared = std::move(weights);
  return OkStatus();
}

}  // namespace ft
