// The dispatcher ops on tensors: schemas, and their form for any device.
//
// One call moves tensors that share flat integer states and a rule. Nothing is read back and nothing raises for bad values:
// `outcome` receives the hash of the state and, per tensor, a word of flags and what its slots use; the caller decides.
//
// numbers: a row per tensor: sigma of each state, of the weight before and after the step, and the rule's numbers.
// shifts: a row per tensor: whether it takes part, then shift and centre of each state and of the weight.
// elements: none, or for every tensor and number of the rule: one value per weight, or an empty tensor.
// planes: of all tensors one after the other, states before the weight; see core/planes.h.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"

namespace rh {

// A step, or its way back for all but the weights.
template <const Device& device, Phase phase>
void move_states(StringHandle rule, std::vector<Tensor> weights, std::vector<Tensor> gradients, Tensor x,
                 std::vector<Tensor> states, Tensor numbers, Tensor shifts, std::vector<Tensor> elements, Tensor planes,
                 Tensor skipped, bool hash, Tensor outcome, std::optional<Tensor> first_refused, int64_t number) {
  const Call call{take_string(rule),
                  std::move(weights),
                  std::move(gradients),
                  x,
                  std::move(states),
                  numbers,
                  shifts,
                  std::move(elements),
                  planes,
                  skipped,
                  hash,
                  outcome,
                  first_refused,
                  number};
  device.move(phase, check_arguments(phase, call, device.shape(call.rule)), call);
}

template <const Device& device>
void move_weights(StringHandle rule, std::vector<Tensor> weights, Tensor x, std::vector<Tensor> states, Tensor numbers,
                  Tensor shifts, std::vector<Tensor> elements, Tensor planes, bool back, bool hash, Tensor outcome,
                  std::optional<Tensor> first_refused, int64_t number) {
  const Call call{
      take_string(rule), std::move(weights), {},    x, std::move(states), numbers, shifts, std::move(elements), planes, {}, hash,
      outcome,           first_refused,      number};
  const Phase phase = back ? Phase::undo_weights : Phase::redo_weights;
  device.move(phase, check_arguments(phase, call, device.shape(call.rule)), call);
}

// A step's undoing together with its adjoint; see the rule for what is computed. `weights_adjoint` and `states_adjoint` are
// vectors laid out as the state. carries: a row per tensor: what its states decayed by in the step that was undone before, and,
// of a rule that decays weights, what its weights decayed by in this one. sigma_before: a row per tensor: sigma of its states
// before the step. `partials` is scratch memory. `sums` gets the wanted inner products, one kind after the other, each with one
// number per tensor.
//
// Gradients of several losses need the adjoint for each one's vectors, but their step is undone once. `moved`: it has been, by
// this very op with the first loss's; then the integers are only read, and what else a move writes (weights, planes, skipped)
// stays as it is, too. The vectors get the bits that a call which moves gives them; `outcome` becomes zeros.
template <const Device& device>
void undo_weights_adjoint(StringHandle rule, std::vector<Tensor> weights, Tensor x, std::vector<Tensor> states, Tensor numbers,
                          Tensor shifts, std::vector<Tensor> elements, Tensor planes, bool moved, bool hash, Tensor outcome,
                          Tensor weights_adjoint, std::vector<Tensor> states_adjoint, std::vector<Tensor> products,
                          Tensor carries, std::vector<bool> wanted, Tensor partials, Tensor sums) {
  const Call call{take_string(rule),
                  std::move(weights),
                  {},
                  x,
                  std::move(states),
                  numbers,
                  shifts,
                  std::move(elements),
                  planes,
                  {},
                  hash,
                  outcome};
  const RuleShape shape = device.shape(call.rule);
  Arguments arguments = check_arguments(Phase::undo_weights, call, shape);
  check_adjoint(Phase::undo_weights,
                {weights_adjoint,
                 std::move(states_adjoint),
                 std::move(products),
                 {},
                 carries,
                 {},
                 moved,
                 std::move(wanted),
                 partials,
                 sums},
                call, shape, arguments);
  device.move(Phase::undo_weights, arguments, call);
}

template <const Device& device>
void undo_states_adjoint(StringHandle rule, std::vector<Tensor> weights, std::vector<Tensor> gradients, Tensor x,
                         std::vector<Tensor> states, Tensor numbers, Tensor shifts, std::vector<Tensor> elements, Tensor planes,
                         Tensor skipped, bool moved, bool hash, Tensor outcome, Tensor weights_adjoint,
                         std::vector<Tensor> states_adjoint, std::vector<Tensor> directions, Tensor sigma_before,
                         std::vector<bool> wanted, Tensor partials, Tensor sums) {
  const Call call{take_string(rule),
                  std::move(weights),
                  std::move(gradients),
                  x,
                  std::move(states),
                  numbers,
                  shifts,
                  std::move(elements),
                  planes,
                  skipped,
                  hash,
                  outcome};
  const RuleShape shape = device.shape(call.rule);
  Arguments arguments = check_arguments(Phase::undo_states, call, shape);
  check_adjoint(Phase::undo_states,
                {weights_adjoint,
                 std::move(states_adjoint),
                 {},
                 std::move(directions),
                 {},
                 sigma_before,
                 moved,
                 std::move(wanted),
                 partials,
                 sums},
                call, shape, arguments);
  device.move(Phase::undo_states, arguments, call);
}

template <class Library>
void define_moves(Library& m) {
  m.def(
      "step(str rule, Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!) x, Tensor(c!)[] states, Tensor numbers, Tensor shifts,"
      " Tensor[] elements, Tensor(d!) planes, Tensor skipped, bool hash, Tensor(e!) outcome, Tensor(f!)? first_refused=None,"
      " int number=0) -> ()");
  m.def(
      "move_weights(str rule, Tensor(a!)[] weights, Tensor(b!) x, Tensor[] states, Tensor numbers, Tensor shifts,"
      " Tensor[] elements, Tensor(c!) planes, bool back, bool hash, Tensor(d!) outcome, Tensor? first_refused=None,"
      " int number=0) -> ()");
  m.def(
      "undo_states(str rule, Tensor[] weights, Tensor[] gradients, Tensor x, Tensor(a!)[] states, Tensor numbers, Tensor shifts,"
      " Tensor[] elements, Tensor planes, Tensor(b!) skipped, bool hash, Tensor(c!) outcome, Tensor? first_refused=None,"
      " int number=0) -> ()");
  m.def(
      "undo_weights_adjoint(str rule, Tensor(a!)[] weights, Tensor(b!) x, Tensor[] states, Tensor numbers, Tensor shifts,"
      " Tensor[] elements, Tensor planes, bool moved, bool hash, Tensor(c!) outcome, Tensor(d!) weights_adjoint,"
      " Tensor(e!)[] states_adjoint, Tensor[] products, Tensor carries, bool[] wanted, Tensor(f!) partials, Tensor(g!) sums)"
      " -> ()");
  m.def(
      "undo_states_adjoint(str rule, Tensor[] weights, Tensor[] gradients, Tensor x, Tensor(a!)[] states, Tensor numbers,"
      " Tensor shifts, Tensor[] elements, Tensor planes, Tensor(b!) skipped, bool moved, bool hash, Tensor(c!) outcome,"
      " Tensor(d!) weights_adjoint, Tensor[] states_adjoint, Tensor(e!)[] directions, Tensor sigma_before, bool[] wanted,"
      " Tensor(f!) partials, Tensor(g!) sums) -> ()");
}

template <const Device& device, class Library>
void implement_moves(Library& m) {
  constexpr auto step = &move_states<device, Phase::step>;  // a macro takes no comma
  constexpr auto undo_states = &move_states<device, Phase::undo_states>;
  m.impl("step", TORCH_BOX(step));
  m.impl("move_weights", TORCH_BOX(&move_weights<device>));
  m.impl("undo_states", TORCH_BOX(undo_states));
  m.impl("undo_weights_adjoint", TORCH_BOX(&undo_weights_adjoint<device>));
  m.impl("undo_states_adjoint", TORCH_BOX(&undo_states_adjoint<device>));
}

}  // namespace rh
