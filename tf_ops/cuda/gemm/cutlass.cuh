// What the kernels of CUTLASS share: its headers and the launch. Compiled for sm_90a alone, with
// NDEBUG: asserts make ptxas put the wgmma instructions one behind the other. The headers alone
// take as long to compile as a kernel: three to five of these a file.
#pragma once

#include "cutlass/cutlass.h"
// CUTLASS's headers depend on this order.
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"
#include "tf_ops/cuda/device_context.h"

namespace ft {
namespace cuda {

// Puts a product on the context's stream. `device` is CUTLASS's GemmUniversalAdapter; of
// `arguments` the device is filled in here. `describe` returns what errors call the product.
template <typename Device, typename Describe>
Status LaunchCutlass(typename Device::Arguments arguments, const LaunchContext& context,
                     const Describe& describe) {
  const auto check = [&](cutlass::Status status, const char* step) {
    if (status == cutlass::Status::kSuccess) return OkStatus();
    return Internal("CUTLASS: ", step, " of ", describe(), " returned ",
                    cutlassGetStatusString(status));
  };
  arguments.hw_info.device_id = context.device;
  arguments.hw_info.sm_count = context.num_multiprocessors;
  FT_RETURN_IF_ERROR(check(Device::can_implement(arguments), "the check"));
  // The persistent scheduler has nothing to keep in device memory.
  if (Device::get_workspace_size(arguments) != 0) {
    return Internal("CUTLASS wants a workspace for ", describe());
  }
  Device gemm;
  FT_RETURN_IF_ERROR(check(gemm.initialize(arguments, nullptr, context.stream), "the preparation"));
  // The kernels wait for the previous one before they load what it wrote; until then they overlap.
  return check(gemm.run(context.stream, nullptr, context.overlap), "the launch");
}

}  // namespace cuda
}  // namespace ft
