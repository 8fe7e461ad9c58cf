// The torch-free core for NumPy: the same arithmetic, opened for research. Documented in reversible_hypergrad/core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/hash.h"
#include "core/rational.h"
#include "core/sgd.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

// Calls f(State{}) for the width asked for.
template <class F>
auto with_state(int state_bits, F f) {
  if (state_bits == 64) return f(rh::State64{});
  if (state_bits == 32) return f(rh::State32{});
  throw std::invalid_argument("state_bits: expected 32 or 64, got " + std::to_string(state_bits));
}

std::pair<int64_t, int64_t> approximate_momentum(double momentum, int state_bits) {
  return with_state(state_bits, [&](auto state) {
    using State = decltype(state);
    if (!(momentum > 0 && momentum <= 1))
      throw std::invalid_argument("momentum: expected a number in (0, 1], got " + text(momentum) +
                                  ". Momentum 0 destroys the whole velocity at every step, which no buffer of less than a "
                                  "full copy can undo");
    rh::Rational r = rh::approximate_momentum(momentum, State::momentum_tolerance, State::max_denominator);
    if (r.d == 0)
      throw std::invalid_argument(
          "momentum: " + text(momentum) + " is too close to " + (momentum > 0.5 ? "1" : "0") + " for a fraction n/d with d <= " +
          std::to_string(State::max_denominator) + ", the limit of state_bits=" + std::to_string(State::bits) +
          (State::bits == 32 ? ". Use state_bits=64 or a less extreme momentum" : ". Use a less extreme momentum, or exactly 1"));
    return std::pair<int64_t, int64_t>(r.n, r.d);
  });
}

template <class State>
void check_fraction(int64_t n, int64_t d) {
  if (!(n > 0 && d > 0 && n <= State::max_denominator && d <= State::max_denominator))
    throw std::invalid_argument("n/d: expected two integers in [1, " + std::to_string(State::max_denominator) + "], got " +
                                std::to_string(n) + "/" + std::to_string(d));
}

std::pair<int64_t, std::vector<int>> plan_pushes(int64_t bound, int64_t n, int64_t d, int count, int state_bits) {
  return with_state(state_bits, [&](auto state) {
    using State = decltype(state);
    check_fraction<State>(n, d);
    if (n > d) throw std::invalid_argument("n/d: expected at most 1, since only a decay fills the buffer");
    if (bound < 1 || bound > State::capacity + State::max_denominator)
      throw std::invalid_argument("bound: expected a bound that an earlier plan returned (1 for an empty buffer)");
    std::vector<int> spill_bits(static_cast<size_t>(count));
    for (int& bits : spill_bits) {
      rh::Push push = rh::plan_push<State>(bound, n, d);
      bound = push.bound;
      bits = push.spill_bits;
    }
    return std::make_pair(bound, spill_bits);
  });
}

// One contraction per element: values[i] with accumulators[i], in place.
template <class State>
void contract(Array<typename State::Integer> values, Array<typename State::Accumulator> accumulators, int64_t n, int64_t d) {
  check_fraction<State>(n, d);
  if (values.size() != accumulators.size())
    throw std::invalid_argument("accumulators: expected one per value (" + std::to_string(values.size()) + "), got " +
                                std::to_string(accumulators.size()));
  auto* v = values.mutable_data();
  auto* s = accumulators.mutable_data();
  // A decay takes velocities in range; its inverse takes what such a decay can give.
  const rh::Contracted<State> valid = n <= d ? rh::Contracted<State>(1, 1) : rh::Contracted<State>(d, n);
  for (py::ssize_t i = 0; i < values.size(); ++i)
    if (static_cast<typename State::Accumulator>(v[i] - valid.low) >= valid.count)
      throw std::overflow_error("values[" + std::to_string(i) + "]: " + std::to_string(v[i]) + " is " +
                                (n <= d ? "beyond" : "nothing that a contraction gives inside") + " the velocity range +-2^" +
                                std::to_string(State::velocity_limit_bits) + " quanta of " + std::to_string(State::bits) +
                                "-bit state. Use smaller values");
  const rh::Divisor<State> numerator(n), denominator(d);
  for (py::ssize_t i = 0; i < values.size(); ++i) rh::contract(v[i], s[i], numerator, denominator);
}

// One digit per lane in front of what the accumulator holds: s = s * base + digit. The caller keeps s * base in capacity.
template <class State>
void push(Array<typename State::Integer> digits, Array<typename State::Accumulator> accumulators, int64_t base) {
  check_fraction<State>(base, base);
  if (digits.size() != accumulators.size())
    throw std::invalid_argument("digits: expected one per lane (" + std::to_string(accumulators.size()) + "), got " +
                                std::to_string(digits.size()));
  const auto* digit = digits.data();
  for (py::ssize_t i = 0; i < digits.size(); ++i)
    if (digit[i] < 0 || digit[i] >= base)
      throw std::invalid_argument("digits[" + std::to_string(i) + "]: expected a digit of base " + std::to_string(base) +
                                  ", got " + std::to_string(digit[i]));
  auto* s = accumulators.mutable_data();
  for (py::ssize_t i = 0; i < digits.size(); ++i)
    s[i] = s[i] * static_cast<typename State::Accumulator>(base) + static_cast<typename State::Accumulator>(digit[i]);
}

// The last digit of each lane, taken off.
template <class State>
Array<typename State::Integer> pop(Array<typename State::Accumulator> accumulators, int64_t base) {
  check_fraction<State>(base, base);
  Array<typename State::Integer> digits(accumulators.size());
  auto* s = accumulators.mutable_data();
  const auto divisor = static_cast<typename State::Accumulator>(base);
  for (py::ssize_t i = 0; i < accumulators.size(); ++i) {
    digits.mutable_data()[i] = static_cast<typename State::Integer>(s[i] % divisor);
    s[i] /= divisor;
  }
  return digits;
}

py::dict format_of(int state_bits) {
  return with_state(state_bits, [](auto state) {
    using State = decltype(state);
    return py::dict("state_bits"_a = State::bits, "weight_fraction_bits"_a = State::weight_fraction_bits,
                    "velocity_fraction_bits"_a = State::velocity_fraction_bits, "weight_limit_bits"_a = State::weight_limit_bits,
                    "velocity_limit_bits"_a = State::velocity_limit_bits, "capacity"_a = State::capacity,
                    "max_denominator"_a = State::max_denominator);
  });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("WEIGHTS_PER_LANE") = rh::kWeightsPerLane;
  m.attr("BAD_GRADIENT") = static_cast<int>(rh::kBadGradient);
  m.attr("VELOCITY_OVERFLOW") = static_cast<int>(rh::kVelocityOverflow);
  m.attr("WEIGHT_OVERFLOW") = static_cast<int>(rh::kWeightOverflow);
  m.attr("FOREIGN_GRADIENT") = static_cast<int>(rh::kForeignGradient);
  m.def("approximate_momentum", &approximate_momentum, "momentum"_a, "state_bits"_a);
  m.def("plan_pushes", &plan_pushes, "bound"_a, "n"_a, "d"_a, "count"_a, "state_bits"_a);
  m.def("contract", &contract<rh::State64>, py::arg("values").noconvert(), py::arg("accumulators").noconvert(), "n"_a, "d"_a);
  m.def("contract", &contract<rh::State32>, py::arg("values").noconvert(), py::arg("accumulators").noconvert(), "n"_a, "d"_a);
  m.def("push", &push<rh::State64>, py::arg("digits").noconvert(), py::arg("accumulators").noconvert(), "base"_a);
  m.def("push", &push<rh::State32>, py::arg("digits").noconvert(), py::arg("accumulators").noconvert(), "base"_a);
  m.def("pop", &pop<rh::State64>, py::arg("accumulators").noconvert(), "base"_a);
  m.def("pop", &pop<rh::State32>, py::arg("accumulators").noconvert(), "base"_a);
  m.def("format_of", &format_of, "state_bits"_a);
  m.def("block_count", &rh::block_count, "size"_a);
  m.def("lane_count", &rh::lane_count, "size"_a);
  m.def("state_size", &rh::state_size, "size"_a);
}
