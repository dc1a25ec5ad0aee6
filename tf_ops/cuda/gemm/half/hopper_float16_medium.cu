#include "tf_ops/cuda/gemm/half/hopper.cuh"

namespace ft {
namespace cuda {

template Status HopperHalf<DataType::kFloat16>::Residual64x192(const GemmArgs&,
                                                               const LaunchContext&);
template Status HopperHalf<DataType::kFloat16>::BiasOne128x192(const GemmArgs&,
                                                               const LaunchContext&);
template Status HopperHalf<DataType::kFloat16>::GeluOne128x192(const GemmArgs&,
                                                               const LaunchContext&);

}  // namespace cuda
}  // namespace ft
