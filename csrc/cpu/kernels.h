// Loops over blocks on the CPU. Torch-free: pointers, sizes, plain structs. The same source is compiled once per rule and
// instruction set (kernels.cpp); each build enters itself into one list, from which the caller picks at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/slices.h"

namespace rh {

struct Outcome {
  uint64_t hash = 0;                   // of what the call wrote, and of the same parts of tensors at rest
  uint32_t flags = 0;                  // rh::Flag
  uint64_t used[kMaxStates + 1] = {};  // used_bits of every state, and last of the weight; of steps
};

// Blocks [first, last) of one tensor.
using Move = Outcome (*)(Phase phase, const Slice& slice, int64_t first, int64_t last, bool hash, bool stream);

// The adjoint beside it, on blocks that Phase::undo_weights or Phase::undo_states has moved: right after it, while they are in
// cache, or later for other vectors. A block that was refused is left as it is and adds nothing.
using MoveAdjoint = void (*)(Phase phase, const Slice& slice, const AdjointSlice& adjoint, int64_t first, int64_t last);

struct Kernels {
  const char* rule;
  const char* instruction_set;
  int states, numbers, sums_before, sums_after;
  const int* powers;  // of each state
  bool decays_weight;
  Move move64, move32;
  MoveAdjoint adjoint64, adjoint32;
};

// Every build that was linked in.
std::vector<const Kernels*>& all_kernels();

struct Registration {
  explicit Registration(const Kernels* kernels) { all_kernels().push_back(kernels); }
};

// Names of the builds that this machine can run, widest first; and the one in use.
std::vector<std::string> instruction_sets();
std::string& active_instruction_set();

// Of the instruction set in use; null if there is no such rule.
const Kernels* find_kernels(const std::string& rule);

}  // namespace rh
