// Which builds of kernels.cu and adjoint.cu there are.
#include "kernels.h"

namespace rh {

std::vector<const CudaKernels*>& all_cuda_kernels() {
  static std::vector<const CudaKernels*> kernels;
  return kernels;
}

const CudaKernels* find_cuda_kernels(const std::string& rule, int state_bits, bool adjoint) {
  for (const CudaKernels* kernels : all_cuda_kernels())
    if (rule == kernels->rule && state_bits == kernels->state_bits && adjoint == kernels->adjoint) return kernels;
  return nullptr;
}

}  // namespace rh
