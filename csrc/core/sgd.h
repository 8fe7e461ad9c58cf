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
  return x + (typename State::Integer{1} << State::velocity_limit_bits);
}
template <class State, class Integer>
RH_INLINE Integer weight_word(Integer x) {
  return x + (typename State::Integer{1} << State::weight_limit_bits);
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

}  // namespace rh
