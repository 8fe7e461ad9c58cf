// The two phases of undoing a step together with the step's adjoint: schemas, and their form for any device. See
// core/adjoint.h for what they compute.
//
// `weights_adjoint` and `velocities_adjoint` are vectors laid out as the state. `partials` is scratch memory. `sums` gets the
// wanted inner products, one after the other, each with one number per weight of the bucket.
#pragma once

#include "ops.h"

namespace rh {

// av -= lr*aw. Wanted or not, by whether `sums` has elements: <aw, v'>.
template <Move move>
void sgd_undo_weights_adjoint(std::vector<Tensor> weights, std::vector<bool> active, Tensor state_weights, Tensor velocities,
                              Tensor accumulators, std::vector<double> coefficients, bool hash, Tensor outcome,
                              std::optional<std::vector<Tensor>> lr_elements, Tensor weights_adjoint, Tensor velocities_adjoint,
                              Tensor partials, Tensor sums) {
  const Call call{std::move(weights),
                  {},
                  std::move(active),
                  state_weights,
                  velocities,
                  accumulators,
                  {},
                  std::vector<int64_t>(kWeightsPerLane, 0),
                  std::move(coefficients),
                  lr_elements.value_or(std::vector<Tensor>{}),
                  1,
                  1,
                  hash,
                  outcome};
  Arguments arguments = check_arguments(Phase::undo_weights, call, nullptr);
  arguments.adjoint =
      check_adjoint({weights_adjoint, velocities_adjoint, {}, {}, {sums.numel() > 0}, partials, sums}, call, arguments);
  move(Phase::undo_weights, arguments, call);
}

// aw += product + decay*share*av; av *= n/d. `wanted`: <share*av, w>, <av, v>, <av, g + decay*w>. `settings`: share, decay.
template <Move move>
void sgd_undo_velocity_adjoint(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<bool> active,
                               Tensor state_weights, Tensor velocities, Tensor accumulators, std::vector<Tensor> planes,
                               std::vector<int64_t> spill_bits, std::vector<double> coefficients, int64_t n, int64_t d,
                               Tensor skipped, bool hash, Tensor outcome, Tensor weights_adjoint, Tensor velocities_adjoint,
                               std::vector<Tensor> products, std::vector<double> settings, std::vector<bool> wanted,
                               Tensor partials, Tensor sums) {
  const Call call{std::move(weights),
                  std::move(gradients),
                  std::move(active),
                  state_weights,
                  velocities,
                  accumulators,
                  std::move(planes),
                  std::move(spill_bits),
                  std::move(coefficients),
                  {},
                  n,
                  d,
                  hash,
                  outcome};
  Arguments arguments = check_arguments(Phase::undo_velocity, call, &skipped);
  arguments.adjoint = check_adjoint(
      {weights_adjoint, velocities_adjoint, std::move(products), std::move(settings), std::move(wanted), partials, sums}, call,
      arguments);
  move(Phase::undo_velocity, arguments, call);
}

template <class Library>
void define_adjoint_moves(Library& m) {
  m.def(
      "sgd_undo_weights_adjoint(Tensor(a!)[] weights, bool[] active, Tensor(b!) state_weights, Tensor velocities,"
      " Tensor accumulators, float[] coefficients, bool hash, Tensor(c!) outcome, Tensor[]? lr_elements,"
      " Tensor weights_adjoint, Tensor(d!) velocities_adjoint, Tensor(e!) partials, Tensor(f!) sums) -> ()");
  m.def(
      "sgd_undo_velocity_adjoint(Tensor[] weights, Tensor[] gradients, bool[] active, Tensor state_weights,"
      " Tensor(a!) velocities, Tensor(b!) accumulators, Tensor[] planes, int[] spill_bits, float[] coefficients, int n, int d,"
      " Tensor(c!) skipped, bool hash, Tensor(d!) outcome, Tensor(e!) weights_adjoint, Tensor(f!) velocities_adjoint,"
      " Tensor[] products, float[] settings, bool[] wanted, Tensor(g!) partials, Tensor(h!) sums) -> ()");
}

template <Move move, class Library>
void implement_adjoint_moves(Library& m) {
  m.impl("sgd_undo_weights_adjoint", TORCH_BOX(&sgd_undo_weights_adjoint<move>));
  m.impl("sgd_undo_velocity_adjoint", TORCH_BOX(&sgd_undo_velocity_adjoint<move>));
}

}  // namespace rh
