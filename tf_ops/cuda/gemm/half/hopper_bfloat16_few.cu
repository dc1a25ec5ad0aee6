#include "tf_ops/cuda/gemm/half/hopper.cuh"

namespace ft {
namespace cuda {

template Status HopperHalf<DataType::kBFloat16>::Activated64x96(const GemmArgs&,
                                                                const LaunchContext&);
template Status HopperHalf<DataType::kBFloat16>::Residual64x96(const GemmArgs&,
                                                               const LaunchContext&);
template Status HopperHalf<DataType::kBFloat16>::Activated64(const GemmArgs&, const LaunchContext&);
template Status HopperHalf<DataType::kBFloat16>::Residual64(const GemmArgs&, const LaunchContext&);

}  // namespace cuda
}  // namespace ft
