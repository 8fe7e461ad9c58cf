// The moves of the state alone.
#include "kernels.h"
#include "launch.h"

namespace rh {

#define RH_NAME_OF(bits) cuda_move##bits
#define RH_NAME(bits) RH_NAME_OF(bits)
const char* RH_NAME(RH_STATE_BITS)(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, bool hash,
                                   uint64_t* outcome, int device, void* stream) {
  const auto plain = [](const Entry& entry, size_t) { return entry; };
  const cudaError_t status =
      move_all<Alone>(phase, shared_of(phase, bucket, hash, outcome), slices, plain, device, static_cast<cudaStream_t>(stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace rh
