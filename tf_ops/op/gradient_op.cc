// GradientNotAvailable: what stands in a graph for the gradients that the other ops do not have.
#include <string>

#include "tensorflow/core/framework/op_kernel.h"

namespace ft::op {
namespace {

class GradientNotAvailableKernel : public tensorflow::OpKernel {
 public:
  explicit GradientNotAvailableKernel(tensorflow::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("message", &message_));
  }

  void Compute(tensorflow::OpKernelContext* ctx) override {
    ctx->SetStatus(absl::UnimplementedError(message_));
  }

 private:
  std::string message_;
};

REGISTER_KERNEL_BUILDER(Name("GradientNotAvailable").Device(::tensorflow::DEVICE_CPU),
                        GradientNotAvailableKernel);
#ifdef FT_WITH_CUDA
REGISTER_KERNEL_BUILDER(Name("GradientNotAvailable").Device(::tensorflow::DEVICE_GPU),
                        GradientNotAvailableKernel);
#endif

}  // namespace
}  // namespace ft::op
