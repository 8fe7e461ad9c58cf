// One step of SGD with momentum on one weight, and its inverse in two phases.
//
//     g  = a*grad + b*X        in quanta of velocity; a = (1 - dampening) * 2^fraction, b = weight decay's share
//     V' = contract(V) + round(g)
//     X' = X - round(V' * lr)  lr in quanta of weight per quantum of velocity
//
// Back, before the gradient: X = X' + round(V' * lr). Then the caller recomputes the gradient at X, and
// V = expand(V' - round(g)). The same expressions run both ways, so both ways round alike.
//
// Offending values (non-finite gradient, overflow) raise a flag and take part as whatever integer they rounded to. The
// sums may then wrap, which still is exactly invertible: the caller undoes the step and reports.
#pragma once

#include "information_buffer.h"
#include "scalar_types.h"

namespace rh {

enum Flag : uint32_t {
  kBadGradient = 1,  // not finite, or beyond the range of velocity
  kVelocityOverflow = 2,
  kWeightOverflow = 4,
  kForeignGradient = 8,  // on the way back: a gradient that cannot have produced this velocity
};

template <class State>
struct Coefficients {
  typename State::Real gradient;  // a
  typename State::Real decay;     // b
  typename State::Real lr;
};

// What went wrong in one or several lanes. A value x lies in [-2^bits, 2^bits) when x + 2^bits has no bit above `bits`;
// the words below collect those sums with OR.
template <class Integer>
struct Checks {
  Integer gradient, velocity, change, weight;
};

template <class State, class Integer>
RH_INLINE Integer velocity_word(Integer x) {
  return wrapping_add(x, typename State::Integer{1} << State::velocity_limit_bits);
}
template <class State, class Integer>
RH_INLINE Integer weight_word(Integer x) {
  return wrapping_add(x, typename State::Integer{1} << State::weight_limit_bits);
}

// kDecay = false does not look at x, for callers that need not read it then.
template <bool kDecay, class State, class Real, class Integer>
RH_INLINE Integer gradient_quanta(Real gradient, Integer x, const Coefficients<State>& c) {
  Real g = gradient * c.gradient;
  if (kDecay) g = g + to_real(x) * c.decay;
  return round_to_integer(g);
}

// lr: one number, or one per lane.
template <class State, class Integer, class Rate>
RH_INLINE Integer weight_change(Integer v, Rate lr) {
  return round_to_integer(to_real(v) * lr);
}

// The first half of a step: V' from V.
template <class State, class Integer, class Accumulator, class Real>
RH_INLINE void step_velocity(Integer x, Integer& v, Accumulator& s, Real gradient, const Coefficients<State>& c,
                             const Divisor<State>& n, const Divisor<State>& d, Checks<Integer>& checks) {
  contract(v, s, n, d);
  const Integer quanta =
      c.decay != 0 ? gradient_quanta<true, State>(gradient, x, c) : gradient_quanta<false, State>(gradient, x, c);
  v = wrapping_add(v, quanta);
  checks.gradient = checks.gradient | velocity_word<State>(quanta);
  checks.velocity = checks.velocity | velocity_word<State>(v);
}

// The second half: X' from X.
template <class State, class Integer>
RH_INLINE void step_weight(Integer& x, Integer change, Checks<Integer>& checks) {
  x = wrapping_subtract(x, change);
  checks.change = checks.change | weight_word<State>(change);
  checks.weight = checks.weight | weight_word<State>(x);
}

// V from V'. `place`, as unsigned, is below Contracted::count where this gradient can have produced V'; elsewhere v and s
// are meaningless.
template <bool kDecay, class State, class Integer, class Accumulator, class Real>
RH_INLINE void undo_velocity(Integer x, Integer& v, Accumulator& s, Integer& place, Real gradient, const Coefficients<State>& c,
                             const Divisor<State>& n, const Divisor<State>& d, const Contracted<State>& contracted,
                             Checks<Integer>& checks) {
  const Integer quanta = gradient_quanta<kDecay, State>(gradient, x, c);
  checks.gradient = checks.gradient | velocity_word<State>(quanta);
  v = wrapping_subtract(v, quanta);
  place = wrapping_subtract(v, contracted.low);
  contract(v, s, d, n);
}

// Of one lane's words.
template <class State, class Integer>
RH_INLINE uint32_t flags_of(const Checks<Integer>& checks) {
  return (checks.gradient >> (State::velocity_limit_bits + 1) ? kBadGradient : 0u) |
         (checks.velocity >> (State::velocity_limit_bits + 1) ? kVelocityOverflow : 0u) |
         ((checks.change | checks.weight) >> (State::weight_limit_bits + 1) ? kWeightOverflow : 0u);
}

// The weight that the model sees: rounded once to Real (float64 weights: to double), once more to 16 bits. Powers of two
// only move the point.
template <class State, class T>
RH_INLINE T visible(typename State::Integer x) {
  constexpr double quantum = 1.0 / (int64_t{1} << State::weight_fraction_bits);
  if constexpr (sizeof(T) > sizeof(typename State::Real)) return narrow<T>(static_cast<double>(x) * quantum);
  return narrow<T>(to_real(x) * static_cast<typename State::Real>(quantum));
}

}  // namespace rh
