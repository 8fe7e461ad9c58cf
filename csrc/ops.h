// The dispatcher ops on tensors: schemas, and their form for any device.
//
// A bucket is a list of tensors that share flat integer states (X, V), accumulators and one momentum. One call
// moves a whole bucket. Nothing is read back and nothing raises for bad values: `outcome` receives the hash of the
// state and one word of flags per tensor, and the caller decides.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "arguments.h"
#include "core/layout.h"

namespace rh {

template <Move move>
void sgd_step(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<bool> active, Tensor state_weights,
              Tensor velocities, Tensor accumulators, std::vector<Tensor> planes, std::vector<int64_t> spill_bits,
              std::vector<double> coefficients, int64_t n, int64_t d, Tensor skipped, bool hash, Tensor outcome,
              std::optional<std::vector<Tensor>> lr_elements, std::optional<Tensor> first_refused, int64_t number) {
  Call call{std::move(weights),
            std::move(gradients),
            std::move(active),
            state_weights,
            velocities,
            accumulators,
            std::move(planes),
            std::move(spill_bits),
            std::move(coefficients),
            lr_elements.value_or(std::vector<Tensor>{}),
            n,
            d,
            hash,
            outcome,
            first_refused,
            number};
  move(Phase::step, check_arguments(Phase::step, call, skipped.numel() ? &skipped : nullptr), call);
}

template <Move move>
void sgd_move_weights(std::vector<Tensor> weights, std::vector<bool> active, Tensor state_weights, Tensor velocities,
                      Tensor accumulators, std::vector<double> coefficients, bool back, bool hash, Tensor outcome,
                      std::optional<std::vector<Tensor>> lr_elements, std::optional<Tensor> first_refused, int64_t number) {
  Call call{std::move(weights),
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
            outcome,
            first_refused,
            number};
  const Phase phase = back ? Phase::undo_weights : Phase::redo_weights;
  move(phase, check_arguments(phase, call, nullptr), call);
}

template <Move move>
void sgd_undo_velocity(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<bool> active, Tensor state_weights,
                       Tensor velocities, Tensor accumulators, std::vector<Tensor> planes, std::vector<int64_t> spill_bits,
                       std::vector<double> coefficients, int64_t n, int64_t d, Tensor skipped, bool hash, Tensor outcome,
                       std::optional<Tensor> first_refused, int64_t number) {
  Call call{std::move(weights),
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
            outcome,
            first_refused,
            number};
  move(Phase::undo_velocity, check_arguments(Phase::undo_velocity, call, &skipped), call);
}

template <class Library>
void define_moves(Library& m) {
  m.def(
      "sgd_step(Tensor(a!)[] weights, Tensor[] gradients, bool[] active, Tensor(b!) state_weights, Tensor(c!) velocities,"
      " Tensor(d!) accumulators, Tensor(e!)[] planes, int[] spill_bits, float[] coefficients, int n, int d,"
      " Tensor skipped, bool hash, Tensor(f!) outcome, Tensor[]? lr_elements=None, Tensor(g!)? first_refused=None, int number=0) "
      "-> ()");
  m.def(
      "sgd_move_weights(Tensor(a!)[] weights, bool[] active, Tensor(b!) state_weights, Tensor velocities,"
      " Tensor accumulators, float[] coefficients, bool back, bool hash, Tensor(c!) outcome,"
      " Tensor[]? lr_elements=None, Tensor? first_refused=None, int number=0) -> ()");
  m.def(
      "sgd_undo_velocity(Tensor[] weights, Tensor[] gradients, bool[] active, Tensor state_weights, Tensor(a!) velocities,"
      " Tensor(b!) accumulators, Tensor[] planes, int[] spill_bits, float[] coefficients, int n, int d,"
      " Tensor(c!) skipped, bool hash, Tensor(d!) outcome, Tensor? first_refused=None, int number=0) -> ()");
}

template <Move move, class Library>
void implement_moves(Library& m) {
  m.impl("sgd_step", TORCH_BOX(&sgd_step<move>));
  m.impl("sgd_move_weights", TORCH_BOX(&sgd_move_weights<move>));
  m.impl("sgd_undo_velocity", TORCH_BOX(&sgd_undo_velocity<move>));
}

}  // namespace rh
