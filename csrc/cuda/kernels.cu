// The moves without an adjoint.
#include "launch.h"

namespace rh {
namespace {

const char* move_states_and_weights(const CudaMove& move) {
  std::vector<Entry> entries;
  for (size_t i = 0; i < move.slices.size(); ++i)
    if (move.slices[i].size > 0) entries.push_back(entry_of(move.slices[i], i, move.first_block[i]));
  const Shared shared = shared_of(move);
  const cudaError_t status = move.phase == Phase::undo_weights ? move_all<Phase::undo_weights, NoAdjoint>(move, shared, entries)
                             : move.phase == Phase::undo_states
                                 ? move_all<Phase::undo_states, NoAdjoint>(move, shared, entries)
                                 : move_all<Phase::step, NoAdjoint>(move, shared, entries);  // or redo_weights
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

const CudaKernels kernels = {Rule::kName, Layout::bits, false,        Rule::kStates,       Rule::kNumbers,
                             kSumsBefore, kSumsAfter,   Rule::kPower, Rule::kDecaysWeight, move_states_and_weights};
const CudaRegistration registration(&kernels);

}  // namespace
}  // namespace rh
