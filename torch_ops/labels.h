// The labels of prepared tensors on a GPU (core/prepared_tensor.h), which only the host can
// compare.
#pragma once

#include <memory>
#include <vector>

#include "tf_ops/core/prepared_tensor.h"
#include "torch_ops/convert.h"

namespace ft::torch_op {

// Writes a label, kAlignment bytes, to the beginning of `prepared`.
Status WriteCudaLabel(const std::vector<char>& label, const Tensor& prepared,
                      const ExecutionContext& context);

// As OpenPreparedTensor, of a tensor on the current GPU. The host waits for the GPU and fetches the
// label when it sees a tensor first, which is FailedPrecondition while a CUDA graph is captured,
// and remembers it by the tensor's address and size.
Status OpenCudaPrepared(const Encoder& encoder, const TensorView& prepared,
                        const ExecutionContext& context,
                        std::shared_ptr<const PreparedWeights>* weights);

}  // namespace ft::torch_op
