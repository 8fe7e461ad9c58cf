// The moves of tensors on a GPU: pointers, sizes and a stream. Nothing of torch, and nothing of CUDA either, so that a
// plain C++ compiler can read it. The same bits as csrc/cpu/kernels.h gives from the same gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/slices.h"

namespace rh {

// A move of all tensors of a state, in the order of the stream; nothing waits, nothing is allocated.
struct CudaMove {
  Phase phase;
  const std::vector<Slice>& slices;          // all pointers on the device
  const std::vector<int64_t>& first_block;   // of each slice among the blocks of all
  const std::vector<AdjointSlice>& adjoint;  // one per slice, or none
  double* const* sums;                       // with an adjoint: kMaxSums pointers to one number per slice; null: not wanted
  bool moved;                                // with an adjoint: nothing else is left to do
  Ticket ticket;
  bool hash;
  // On the device: becomes the hash of what the move wrote (0 without `hash`), then per slice its flags and what its slots use,
  // the weight last.
  uint64_t* outcome;
  int device;
  void* stream;  // a cudaStream_t of that device
};

// One rule and width of state, with or without the adjoint.
struct CudaKernels {
  const char* rule;
  int state_bits;
  bool adjoint;
  int states, numbers, sums_before, sums_after;
  const int* powers;  // of each state
  bool decays_weight;
  // One launch moves about 200 tensors (170 with an adjoint; see table.h), of any dtypes, and none those without elements; with
  // an adjoint, another one adds the blocks' sums, where there are any. Returns null, or the text of the first CUDA error; what
  // was launched before it has moved.
  const char* (*move)(const CudaMove& move);
};

// Every build that was linked in.
std::vector<const CudaKernels*>& all_cuda_kernels();

struct CudaRegistration {
  explicit CudaRegistration(const CudaKernels* kernels) { all_cuda_kernels().push_back(kernels); }
};

// Null if there is no such rule.
const CudaKernels* find_cuda_kernels(const std::string& rule, int state_bits, bool adjoint);

}  // namespace rh
