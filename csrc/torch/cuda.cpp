// The ops on a GPU: the kernels of the rule, on torch's current stream there.
#include <torch/headeronly/util/Exception.h>

#include "../cuda/kernels.h"
#include "arguments.h"

// From libtorch_cuda, and of an ABI that torch keeps stable. Weak, so that this library also loads beside a torch without
// CUDA: null there.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace rh {
namespace {

const CudaKernels& kernels_of(const std::string& rule, bool wide, bool adjoint) {
  const CudaKernels* kernels = find_cuda_kernels(rule, wide ? 64 : 32, adjoint);
  STD_TORCH_CHECK(kernels != nullptr, "rule: there are no kernels for '", rule, "' in this build");
  return *kernels;
}

RuleShape shape_on_cuda(const std::string& rule) {
  const CudaKernels& kernels = kernels_of(rule, true, false);
  return {kernels.states, kernels.numbers, kernels.sums_before, kernels.sums_after, kernels.powers, kernels.decays_weight};
}

void move_on_cuda(Phase phase, const Arguments& arguments, const Call& call) {
  STD_TORCH_CHECK(call.x.is_cuda(), "x: expected a CUDA tensor");
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "x: is a CUDA tensor, but the torch that runs has no CUDA streams. Install a torch built with CUDA");
  const int device = call.x.get_device_index();
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "torch has no current stream on cuda:", device);
  const CudaMove move{phase,
                      arguments.slices,
                      arguments.first_block,
                      arguments.adjoint,
                      arguments.sums,
                      arguments.moved,
                      arguments.ticket,
                      call.hash,
                      static_cast<uint64_t*>(call.outcome.data_ptr()),
                      device,
                      stream};
  const char* error = kernels_of(call.rule, arguments.wide, !arguments.adjoint.empty()).move(move);
  STD_TORCH_CHECK(error == nullptr, "CUDA could not start a move of the reversible state on cuda:", device, ": ", error,
                  ". If this GPU is not among those that the library was built for, set TORCH_CUDA_ARCH_LIST (such as '8.6') and "
                  "build it again");
}

}  // namespace

const bool cuda_in_build = true;
const Device cuda_device = {shape_on_cuda, move_on_cuda};

}  // namespace rh
