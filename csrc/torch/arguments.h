// What the ops receive, checked, as the plain structs of core/slices.h. Stable ABI: one binary serves torch >= 2.10.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../core/slices.h"

namespace rh {

using torch::stable::Tensor;

// What a rule's kernels expect, on every device alike.
struct RuleShape {
  int states, numbers, sums_before, sums_after;
  const int* powers;  // of the states: those of power 2 are int64 in every layout
  bool decays_weight;
};

struct Call {
  std::string rule;
  std::vector<Tensor> weights;
  std::vector<Tensor> gradients;  // one per weight, empty: the tensor has none; no entries where the phase needs none
  Tensor x;
  std::vector<Tensor> states;
  Tensor numbers, shifts;
  std::vector<Tensor> elements;
  Tensor planes;
  std::optional<Tensor> skipped;
  bool hash;
  Tensor outcome;
  std::optional<Tensor> first_refused{};
  int64_t number = 0;
};

// The arguments of a step's adjoint, which its undoing takes along.
struct AdjointCall {
  Tensor weights;                      // vectors, laid out as the state
  std::vector<Tensor> states;          // as the weights
  std::vector<Tensor> products;        // one per weight, empty: zero; no entries in the second half
  std::vector<Tensor> directions;      // one per weight, empty: not written; no entries in the first half
  std::optional<Tensor> carries;       // of the first half, with a last column for the weights if the rule decays them
  std::optional<Tensor> sigma_before;  // of the second half
  bool moved;                          // the integers were, by a call with other vectors; see ops.h
  std::vector<bool> wanted;            // which sums
  Tensor partials, sums;
};

struct Arguments {
  std::vector<Slice> slices;
  std::vector<int64_t> first_block;  // of each slice; then the number of all blocks
  bool wide;                         // 64-bit state
  Ticket ticket;
  std::vector<AdjointSlice> adjoint;  // empty, or one per slice
  double* sums[kMaxSums];             // one number per slice; null: not wanted
  bool moved;                         // only the adjoint is left to do
};

// Raises an error that names the argument which does not fit, before anything moves.
Arguments check_arguments(Phase phase, const Call& call, const RuleShape& shape);
void check_adjoint(Phase phase, const AdjointCall& adjoint, const Call& call, const RuleShape& shape, Arguments& arguments);

// A string that an op is given, and deletes. Ops take handles, since torch's conversion to std::string leaks a copy of it at
// every call (2.13 does), which at every step would pin holes in the heap.
std::string take_string(StringHandle handle);

// For error messages, and what several arguments must be.
std::string device_of(const Tensor& tensor);
bool same_device(const Tensor& a, const Tensor& b);
bool same_strides(const Tensor& tensor, const Tensor& weight);

// A device: what a rule expects there (raises if there is no such rule), and its moves.
struct Device {
  RuleShape (*shape)(const std::string& rule);
  void (*move)(Phase phase, const Arguments& arguments, const Call& call);
};
extern const Device cpu_device, cuda_device;
extern const bool cuda_in_build;

}  // namespace rh
