// Prepared weights as bytes that a front end keeps, in a tensor that a module holds. For frameworks
// that assign weights in place: there a WeightCache may not take an address for the numbers at it.
//
//   [label, kAlignment bytes of text][prepared weights]
//
// The label says what the bytes are. They may have been saved and come to another processor, whose
// layout is another, or be another model's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tf_ops/core/weight_cache.h"

namespace ft {

// What every framework aligns a tensor's memory to, and all that the tensor here has to be.
inline constexpr int64_t kTensorAlignment = 64;

// Bytes of label and weights.
int64_t PreparedTensorBytes(const Encoder& encoder);

// The label, filled up with zeros to kAlignment bytes.
std::string PreparedTensorLabel(const Encoder& encoder);

// Writes label and weights; `tensor` is memory of that many bytes, aligned to kTensorAlignment.
// `label` is host memory that gets the first kAlignment of them: `tensor` itself, or on a GPU what
// the caller copies there. `layers` are checked (Runner::CheckWeights).
Status PrepareTensor(const Encoder& encoder, const std::vector<LayerWeights>& layers, void* tensor,
                     void* label, const ExecutionContext& context);

// InvalidArgument if `tensor`, whose numbers are not read, cannot be one that PrepareTensor wrote.
Status CheckPreparedTensor(const TensorView& tensor);

// The weights in `tensor`, uint8 [PreparedTensorBytes], which stay there. `label` is its first
// kAlignment bytes, in host memory. InvalidArgument if it is no tensor that PrepareTensor wrote for
// such an encoder.
Status OpenPreparedTensor(const Encoder& encoder, const TensorView& tensor, const void* label,
                          std::shared_ptr<const PreparedWeights>* prepared);

}  // namespace ft
