// Picks the kernels for checked arguments.
#include "../arguments.h"
#include "kernels.h"

namespace rh {

const char* start_on_cuda(Phase phase, const Arguments& arguments, bool hash, uint64_t* outcome, int device, void* stream) {
  const Bucket& bucket = arguments.bucket;
  const std::vector<Slice>& slices = arguments.slices;
  if (arguments.adjoint) {
    const CudaMoveAdjoint move = arguments.wide ? cuda_move_adjoint64 : cuda_move_adjoint32;
    return move(phase, bucket, slices, arguments.adjoint->shared, arguments.adjoint->slices, hash, outcome, device, stream);
  }
  const CudaMove move = arguments.wide ? cuda_move64 : cuda_move32;
  return move(phase, bucket, slices, hash, outcome, device, stream);
}

}  // namespace rh
