// The moves of a bucket on a GPU: pointers, sizes and a stream. Nothing of torch, and nothing of CUDA either, so that a
// plain C++ compiler can read it. The same bits as csrc/cpu/kernels.h gives from the same gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/adjoint.h"
#include "../core/bucket.h"

namespace rh {

// Moves all tensors of `bucket`, in the order of the stream; nothing waits, nothing is allocated.
//
// `slices`: all pointers on `device`; gradient_coefficient etc. as on the CPU.
// `outcome`: on the device, 1 + slices.size() words: becomes the hash of what the move wrote (0 without `hash`) and
//     rh::Flag bits per slice.
// `stream`: a cudaStream_t of that device.
//
// One launch moves any number of slices of one dtype, up to about 300 at a time (see table.h). Empty slices launch nothing.
// Returns null, or the text of the first CUDA error; what was launched before it has moved.
using CudaMove = const char* (*)(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, bool hash,
                                 uint64_t* outcome, int device, void* stream);

const char* cuda_move64(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, bool hash, uint64_t* outcome,
                        int device, void* stream);
const char* cuda_move32(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, bool hash, uint64_t* outcome,
                        int device, void* stream);

// The same of Phase::undo_weights and Phase::undo_velocity with the adjoint, see core/adjoint.h.
//
// `adjoint`, `own`: all pointers on `device`, one entry of `own` per slice. Where sums are wanted, a second launch adds those of
//     the blocks.
using CudaMoveAdjoint = const char* (*)(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices,
                                        const Adjoint& adjoint, const std::vector<AdjointSlice>& own, bool hash,
                                        uint64_t* outcome, int device, void* stream);

const char* cuda_move_adjoint64(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, const Adjoint& adjoint,
                                const std::vector<AdjointSlice>& own, bool hash, uint64_t* outcome, int device, void* stream);
const char* cuda_move_adjoint32(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, const Adjoint& adjoint,
                                const std::vector<AdjointSlice>& own, bool hash, uint64_t* outcome, int device, void* stream);

}  // namespace rh
