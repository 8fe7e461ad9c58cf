// What the ops receive, checked, as the plain structs of core/bucket.h. Stable ABI: one binary serves torch >= 2.10.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "core/adjoint.h"
#include "core/bucket.h"

namespace rh {

using torch::stable::Tensor;

struct Call {
  std::vector<Tensor> weights;
  std::vector<Tensor> gradients;  // empty when the phase needs none
  std::vector<bool> active;
  Tensor x, v, accumulators;
  std::vector<Tensor> planes;  // one per row that spills
  std::vector<int64_t> spill_bits;
  std::vector<double> coefficients;
  std::vector<Tensor> lr_elements;  // empty, or one per weight: empty, or one number per element
  int64_t n, d;
  bool hash;
  Tensor outcome;
  std::optional<Tensor> first_refused{};
  int64_t number = 0;
};

// Beside a step's undoing, its adjoint.
struct AdjointCall {
  Tensor weights, velocities;    // the vectors
  std::vector<Tensor> products;  // one per weight, empty: zero; none before the gradient
  std::vector<double> settings;  // share and decay, of all weights or of each; none before the gradient
  std::vector<bool> wanted;      // which sums
  Tensor partials, sums;
};

struct AdjointArguments {
  Adjoint shared;
  std::vector<AdjointSlice> slices;
};

struct Arguments {
  Bucket bucket;
  std::vector<Slice> slices;
  std::vector<int64_t> first_block;  // of each slice; then the number of all blocks
  bool wide;                         // 64-bit state
  std::optional<AdjointArguments> adjoint;
};

// Raises an error that names the argument which does not fit, before anything moves.
Arguments check_arguments(Phase phase, const Call& call, const Tensor* skipped);
AdjointArguments check_adjoint(const AdjointCall& adjoint, const Call& call, const Arguments& arguments);

// For error messages, and what several arguments must be.
std::string device_of(const Tensor& tensor);
bool same_device(const Tensor& a, const Tensor& b);
bool same_strides(const Tensor& tensor, const Tensor& weight);

// Moves a bucket; one function per device.
using Move = void (*)(Phase phase, const Arguments& arguments, const Call& call);

void move_on_cpu(Phase phase, const Arguments& arguments, const Call& call);
void move_on_cuda(Phase phase, const Arguments& arguments, const Call& call);
extern const bool cuda_in_build;
// The kernels' launches. Returns null, or the text of CUDA's error.
const char* start_on_cuda(Phase phase, const Arguments& arguments, bool hash, uint64_t* outcome, int device, void* stream);

}  // namespace rh
