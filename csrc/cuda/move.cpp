// Moves a bucket on the GPU that holds it, on torch's current stream there.
#include <torch/headeronly/util/Exception.h>

#include "../arguments.h"
#include "../core/layout.h"
#include "kernels.h"

// From libtorch_cuda, and of an ABI that torch keeps stable. Weak, so that this library also loads beside a torch without
// CUDA: null there.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace rh {

const bool cuda_in_build = true;

void move_on_cuda(Phase phase, const Arguments& arguments, const Call& call) {
  STD_TORCH_CHECK(call.x.is_cuda(), "state_weights: expected a CUDA tensor");
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr,
      "state_weights: is a CUDA tensor, but the torch that runs has no CUDA streams. Install a torch built with CUDA");
  for (int k = 0; k < kWeightsPerLane; ++k)
    STD_TORCH_CHECK(arguments.bucket.spill_bits[k] != 16 || reinterpret_cast<uintptr_t>(arguments.bucket.planes[k]) % 2 == 0,
                    "planes: the one of row ", k, " spills 16 bits, so expected it at an even address; pass a copy of it");
  const int device = call.x.get_device_index();
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "torch has no current stream on cuda:", device);
  const char* error = start_on_cuda(phase, arguments, call.hash, static_cast<uint64_t*>(call.outcome.data_ptr()), device, stream);
  STD_TORCH_CHECK(error == nullptr, "CUDA could not start a move of the reversible state on cuda:", device, ": ", error,
                  ". If this GPU is not among those that the library was built for, set TORCH_CUDA_ARCH_LIST (such as '8.6') and "
                  "build it again");
}

}  // namespace rh
