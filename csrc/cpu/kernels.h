// Loops over blocks on the CPU. Torch-free: pointers, sizes, plain structs. The same source is compiled once
// per instruction set (kernels.cpp) and the caller picks a table at run time.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/adjoint.h"
#include "../core/bucket.h"

namespace rh {

struct Outcome {
  uint64_t hash = 0;   // of X and V after the call, as far as the call saw them
  uint32_t flags = 0;  // rh::Flag
};

// Blocks [first, last) of one slice; `block_offset` is the slice's first block in `skipped`.
using Run = Outcome (*)(Phase phase, const Bucket& bucket, const Slice& slice, int64_t block_offset, int64_t first, int64_t last,
                        bool hash, bool stream);

// The adjoint beside it, right after it: Phase::undo_weights or Phase::undo_velocity, on the same blocks. A block that was
// refused is left as it is and adds nothing.
using RunAdjoint = void (*)(Phase phase, const Bucket& bucket, const Slice& slice, const Adjoint& adjoint,
                            const AdjointSlice& own, int64_t block_offset, int64_t first, int64_t last);

struct Kernels {
  const char* name;
  Run run64;
  Run run32;
  RunAdjoint adjoint64;
  RunAdjoint adjoint32;
};

// The tables that this machine can run, widest instruction set first.
std::vector<const Kernels*> available_kernels();

}  // namespace rh
