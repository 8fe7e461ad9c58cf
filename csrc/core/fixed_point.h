// What an integer of the state can hold, and how a move reports that something did not fit.
//
// A tensor has a slot for each state of its optimizer and one for its weights: an integer Z per weight, whose value is
// Z * sigma. sigma is the tensor's and the slot's, a double on the host (lazy scale): see docs/arithmetic.md.
#pragma once

#include <type_traits>

#include "scalar_types.h"

namespace rh {

// Z lies in [-2^limit_bits, 2^limit_bits); what a step adds to it in [-2^increment_bits, 2^increment_bits). One bit is left
// above the limit, so that the sum of an integer and an increment cannot wrap unseen.
struct Layout64 {
  using Integer = int64_t;
  using Real = double;  // of the optimizer's arithmetic
  static constexpr int bits = 64;
  static constexpr int limit_bits = 62;
  static constexpr int increment_bits = 51;  // where rounding by kRounder ends
};

struct Layout32 {
  using Integer = int32_t;
  using Real = float;
  static constexpr int bits = 32;
  static constexpr int limit_bits = 30;
  static constexpr int increment_bits = 30;
};

// Of means of squares, in every layout. Weights move alike whatever the size of their gradients, and squares span twice the
// range, so the bits between what rounding by kRounder reaches and the limit are those that small gradients need.
struct LayoutSquares : Layout64 {
  static constexpr int increment_bits = 61;  // below that of round_wide, so that what it cuts off is seen
};

enum Flag : uint32_t {
  kBadIncrement = 1,      // what a step adds to a state is no number, or beyond increment_bits
  kStateOverflow = 2,     // a state left its limits
  kBadChange = 4,         // what a step subtracts from a weight is no number, or beyond increment_bits
  kWeightOverflow = 8,    // a weight left its limits
  kForeignGradient = 16,  // on the way back: a gradient that cannot have led to this state
};

// A word whose highest set bit tells how many bits z needs: the OR of many tells it of the largest.
template <class Lanes>
RH_INLINE Lanes used_bits(Lanes z) {
  return z ^ (z << 1);
}
RH_INLINE int64_t used_bits(int64_t z) { return z ^ shift_left(z, 1); }
RH_INLINE int32_t used_bits(int32_t z) { return z ^ shift_left(z, 1); }

template <class Layout>
RH_INLINE bool beyond_limit(typename Layout::Integer used) {
  return as_unsigned(used) >> (Layout::limit_bits + 1) != 0;
}

// x lies in [-2^increment_bits, 2^increment_bits) where this has no bit above increment_bits.
template <class Layout, class Lanes>
RH_INLINE Lanes increment_word(Lanes x) {
  return x + (typename Layout::Integer{1} << Layout::increment_bits);
}
template <class Layout>
RH_INLINE typename Layout::Integer increment_word(typename Layout::Integer x) {
  return wrapping_add(x, typename Layout::Integer{1} << Layout::increment_bits);
}
template <class Layout>
RH_INLINE bool bad_increment(typename Layout::Integer word) {
  return as_unsigned(word) >> (Layout::increment_bits + 1) != 0;
}

// A mean of squares, in 64 bits whatever Real is. Its products are of doubles, whose range squares need. It counts as one quantum
// at least, and a square that is not 0 adds one at least: nothing is divided by its root 0, and a weight whose squares are all
// below a quantum moves by no more than others do.
template <class Real>
RH_INLINE Real square_value(int64_t z, double sigma) {
  return static_cast<Real>(static_cast<double>(z > 1 ? z : 1) * sigma);
}
template <class Real>
RH_INLINE int64_t square_quanta(Real square, double inverse) {
  const int64_t q = round_wide(static_cast<double>(square) * inverse);
  return q == 0 && square != 0 ? 1 : q;
}

// The value that the model sees. Weights of double keep all digits; a double goes through float on its way to 16 bits.
template <class T, class Layout>
RH_INLINE T visible(typename Layout::Integer x, double sigma) {
  if constexpr (sizeof(T) == sizeof(double))
    return static_cast<double>(x) * sigma;
  else
    return narrow<T>(to_real(x) * static_cast<typename Layout::Real>(sigma));
}

}  // namespace rh
