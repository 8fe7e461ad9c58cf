// The information buffer: where the digits go that the decay of momentum would destroy.
//
//     contract(V, n/d):  r = V mod d          push r in base d:   t = s*d + r
//                        V = (V div d)*n + p  pop p in base n:    p = t mod n, s = t div n
//     expand(V, n/d):    the exact inverse
//
// div and mod are floor division: V is often negative. Each lane has ONE accumulator s that starts at 0.
// All lanes see the same (n, d), so a bound B > s is known on the host without looking at data (plan_push),
// and when a push could pass the capacity, EVERY lane spills its low 8 or 16 bits into a dense plane. The
// buffer is last in, first out: undoing walks the host's schedule backwards.
//
// Exactness of the floor divisions:
//  64-bit: everything is an integer below 2^50 held in a double, where sums and products that stay below 2^53 are
//    exact. For an integer x, x/d + c with c = 1/(2d) - 1/2 is at least 1/(2d) away from a tie, and the computed
//    value is off by less than 1.5 * 2^-52 * |x|/d < 1/(2d): rounding it to nearest gives floor(x/d), whether
//    the compiler or the hardware fuses the product and the sum or not. A velocity of up to 62 bits is divided like a
//    number of two digits, V = high * 2^12 + low with 0 <= low < 2^12: high = q1*d + r1, r1 * 2^12 + low = q2*d + r,
//    so V = (q1 * 2^12 + q2) * d + r.
//  32-bit: quotients by multiplication with m = ceil(2^(31+l)/d), l = ceil(log2 d). For x <= 2^31 + 2d and d <= 2^13 the
//    error x*(m*d - 2^(31+l)) stays below 2^(31+l), so (x*m) >> (31+l) is exactly x div d (Granlund, Montgomery 1994).
//    Velocities are made non-negative by a bias, the first multiple of d from 2^30 on.
#pragma once

#include "layout.h"

namespace rh {

// What is fixed for one width of state. |X| and |V| stay below their limits, in quanta: a sum of two does not wrap, and
// V can be divided exactly.
struct State64 {
  using Integer = int64_t;
  using Accumulator = uint64_t;
  using Real = double;
  static constexpr int bits = 64;
  static constexpr int weight_limit_bits = 62;
  static constexpr int velocity_limit_bits = 62;
  static constexpr int weight_fraction_bits = 47;    // quantum 7.1e-15, range +-32768: float16 weights stay finite
  static constexpr int velocity_fraction_bits = 47;  // the same
  static constexpr int low_bits = 12;                // of the two digits of a velocity
  static constexpr int64_t capacity = int64_t{1} << 50;
  static constexpr int64_t max_denominator = int64_t{1} << 16;
  static constexpr double momentum_tolerance = 1.0 / (1 << 24);
};

struct State32 {
  using Integer = int32_t;
  using Accumulator = uint32_t;
  using Real = float;
  static constexpr int bits = 32;
  static constexpr int weight_limit_bits = 30;
  static constexpr int velocity_limit_bits = 30;
  static constexpr int weight_fraction_bits = 26;    // quantum 1.5e-8, range +-16
  static constexpr int velocity_fraction_bits = 23;  // quantum 1.2e-7, range +-128
  static constexpr int64_t capacity = (int64_t{1} << 31) - (1 << 16);
  static constexpr int64_t max_denominator = int64_t{1} << 13;
  static constexpr double momentum_tolerance = 1.0 / (1 << 10);
};

// One floor divisor of each width, prepared on the host.
template <class State>
struct Divisor;

template <>
struct Divisor<State64> {
  int64_t value;
  double real;
  double reciprocal;
  double centre;  // c above
  explicit Divisor(int64_t divisor)
      : value(divisor), real(static_cast<double>(divisor)), reciprocal(1.0 / real), centre(0.5 / real - 0.5) {}

  // Integers |x| < 2^50 held in reals.
  template <class Real>
  RH_INLINE void divide(Real x, Real& quotient, Real& remainder) const {
    quotient = round_small(exact_multiply_add(x, reciprocal, centre));
    remainder = exact_multiply_add(quotient, -real, x);
  }
};

template <>
struct Divisor<State32> {
  uint32_t value;
  uint32_t multiplier;
  int32_t shift;
  uint32_t bias_quotient;
  explicit Divisor(int64_t divisor) {
    int log = 0;
    while ((int64_t{1} << log) < divisor) ++log;
    value = static_cast<uint32_t>(divisor);
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + value - 1) / value);
    bias_quotient = ((uint32_t{1} << 30) + value - 1) / value;
  }
  template <class Unsigned>
  RH_INLINE void divide(Unsigned x, Unsigned& quotient, Unsigned& remainder) const {
    quotient = multiply_shift(x, multiplier, shift);
    remainder = x - quotient * value;
  }
};

// V -> V * n/d with the remainder kept in s. Contraction by d/n is the exact inverse ("expand").
template <class Integer, class Accumulator>
RH_INLINE void contract(Integer& v, Accumulator& s, const Divisor<State64>& n, const Divisor<State64>& d) {
  using Real = decltype(small_to_real(v));
  constexpr int bits = State64::low_bits;
  constexpr double base = int64_t{1} << bits;
  Real high, low, carry, digit, rest, out;
  d.divide(small_to_real(shift_right<bits>(v)), high, carry);
  d.divide(exact_multiply_add(carry, base, small_to_real(low_part<bits>(v))), low, digit);
  n.divide(exact_multiply_add(small_to_real(as_signed(s)), d.real, digit), rest, out);
  s = as_unsigned(small_to_integer(rest));
  v = wrapping_add(shift_left<bits>(small_to_integer(high * n.real)), small_to_integer(exact_multiply_add(low, n.real, out)));
}

template <class Integer, class Accumulator>
RH_INLINE void contract(Integer& v, Accumulator& s, const Divisor<State32>& n, const Divisor<State32>& d) {
  Accumulator quotient, digit, rest, out;
  d.divide(as_unsigned(v) + d.bias_quotient * d.value, quotient, digit);
  n.divide(s * d.value + digit, rest, out);
  s = rest;
  v = as_signed(quotient * n.value + out - d.bias_quotient * n.value);
}

// The values that contracting a velocity in [-2^limit, 2^limit) by n/d can give: `count` of them from `low` on. Expanding
// anything else could wrap; expanding one of them stays where contracting it again is exact.
template <class State>
struct Contracted {
  typename State::Integer low;
  typename State::Accumulator count;
  Contracted(int64_t n, int64_t d) {
    constexpr int64_t limit = int64_t{1} << State::velocity_limit_bits;
    const int64_t below = (limit + d - 1) / d, above = (limit - 1) / d + 1;
    low = static_cast<typename State::Integer>(-below * n);
    count = static_cast<typename State::Accumulator>((below + above) * n);
  }
};

// The bound after one contraction of a lane, and what every lane must spill before it.
struct Push {
  int64_t bound;
  int spill_bits;  // 0, 8 or 16
};

// B is an exclusive bound on s before the push. Sixteen bits are spilled when what is left stays far above d (the
// bound rounds up by less than 1 per push: a loss of about 1/B against a gain of log2(d/n)), else eight.
template <class State>
inline Push plan_push(int64_t bound, int64_t n, int64_t d) {
  int spill_bits = 0;
  if (bound > State::capacity / d) {
    int64_t after_short = ((bound - 1) >> 8) + 1, after_long = ((bound - 1) >> 16) + 1;
    spill_bits = after_long >= 64 * d || after_short > State::capacity / d ? 16 : 8;
    bound = spill_bits == 16 ? after_long : after_short;
  }
  return {(bound * d - 1) / n + 1, spill_bits};
}

}  // namespace rh
