// Prepared tensors (core/prepared_tensor.h) on a GPU, whose labels the host would have to wait for.
//
// So the size says what they are, too: behind the weights are as many bytes as the label's hash
// says. It is compared in every call; the label is fetched only to say what is wrong.
#pragma once

#include <memory>
#include <vector>

#include "tf_ops/core/prepared_tensor.h"

namespace ft::torch_op {

// Bytes of label, weights and what follows them.
int64_t CudaPreparedBytes(const Encoder& encoder);

// As PrepareTensor, in memory of the current GPU of CudaPreparedBytes bytes.
Status PrepareCudaTensor(const Encoder& encoder, const std::vector<LayerWeights>& layers,
                         void* tensor, const ExecutionContext& context);

// As OpenPreparedTensor, of a tensor on the current GPU.
Status OpenCudaPrepared(const Encoder& encoder, const TensorView& prepared,
                        const ExecutionContext& context,
                        std::shared_ptr<const PreparedWeights>* weights);

}  // namespace ft::torch_op
