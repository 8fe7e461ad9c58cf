// A momentum as a fraction n/d in lowest terms, 0 < n <= d. The fraction IS the momentum of the run.
//
// The size of d matters twice: after a step the low part of a velocity is noise of up to d quanta, and
// the information buffer rounds its bound up once per push. So the fraction wanted is not the nearest one
// but the SIMPLEST one (smallest d) inside a tolerance, found by walking the Stern-Brocot tree in strides
// (continued fractions).
#pragma once

#include <cmath>
#include <cstdint>

namespace rh {

struct Rational {
  int64_t n;
  int64_t d;
};

// Simplest fraction in [low, high], 0 < low <= high. The recursion is the one of continued fractions.
inline Rational simplest_between(double low, double high) {
  double whole = std::floor(low);
  if (whole == low) return {static_cast<int64_t>(whole), 1};
  if (whole + 1 <= high) return {static_cast<int64_t>(whole) + 1, 1};
  Rational rest = simplest_between(1 / (high - whole), 1 / (low - whole));
  return {static_cast<int64_t>(whole) * rest.n + rest.d, rest.n};
}

// Simplest n/d with |n/d - momentum| <= tolerance * min(momentum, 1 - momentum), for momentum in (0, 1].
// The tolerance is relative to the distance from BOTH ends, since 1 - momentum sets the time constant. Where it would need
// a denominator beyond max_denominator, it is doubled, up to one percent: then {0, 0}, and the caller reports it.
inline Rational approximate_momentum(double momentum, double tolerance, int64_t max_denominator) {
  if (momentum == 1) return {1, 1};
  const double distance = std::fmin(momentum, 1 - momentum);
  // A fraction at this distance from 0 or 1 needs d > 1/distance; beyond the limit the recursion's integers could overflow.
  if (distance * 1.01 * static_cast<double>(max_denominator) < 1) return {0, 0};
  for (; tolerance <= 0.01; tolerance *= 2) {
    const Rational fraction = simplest_between(momentum - tolerance * distance, momentum + tolerance * distance);
    if (fraction.d <= max_denominator) return fraction;
  }
  return {0, 0};
}

}  // namespace rh
