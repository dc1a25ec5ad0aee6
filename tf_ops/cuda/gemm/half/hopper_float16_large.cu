#include "tf_ops/cuda/gemm/half/hopper.cuh"

namespace ft {
namespace cuda {

template Status HopperHalf<DataType::kFloat16>::Bias128x192(const GemmArgs&, const LaunchContext&);
template Status HopperHalf<DataType::kFloat16>::Gelu128x192(const GemmArgs&, const LaunchContext&);
template Status HopperHalf<DataType::kFloat16>::Residual128x192(const GemmArgs&,
                                                                const LaunchContext&);
template Status HopperHalf<DataType::kFloat16>::Bias128(const GemmArgs&, const LaunchContext&);

}  // namespace cuda
}  // namespace ft
