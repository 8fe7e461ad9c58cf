// In place of the ops on CUDA in a build without it.
#include <torch/headeronly/util/Exception.h>

#include "arguments.h"

namespace rh {
namespace {

RuleShape shape_on_cuda(const std::string&) {
  STD_TORCH_CHECK(
      false,
      "weights: got CUDA tensors, but this build of reversible_hypergrad has no CUDA kernels, since no nvcc was found, or "
      "RH_CUDA=0 was set, when it was built. Move the model to the CPU, or install the CUDA toolkit, set CUDA_HOME to it and "
      "build again: "
      "pip install --force-reinstall --no-deps --no-build-isolation reversible_hypergrad");
}

}  // namespace

const bool cuda_in_build = false;
extern const Device cuda_device;
const Device cuda_device = {shape_on_cuda, nullptr};

}  // namespace rh
