// Bit planes: where the bits go that a decay would destroy.
//
//     contract(Z, k, c):  t = Z + c;  the low k bits of t to the planes;  Z = t >> k
//     expand(Z, k, c):    Z = (Z << k) + bits - c
//
// k and c are the host's: k halvings of the tensor's scale, c = 2^(k-1) less the parity of those so far, so that halves round up
// and down in turn. Each is exact whatever Z is, as long as Z << k fits: see docs/arithmetic.md for the proof.
//
// A plane holds one bit of each of a tensor's weights, in their order, eight to a byte, lowest first. The k planes of a
// contraction lie one after the other, lowest bit first.
#pragma once

#include "fixed_point.h"

namespace rh {

RH_INLINE int64_t plane_bytes(int64_t size) { return (size + 7) / 8; }

template <class Integer>
RH_INLINE Integer contract(Integer z, int shift, int64_t centre, Integer& bits) {
  const Integer t = wrapping_add(z, static_cast<Integer>(centre));
  bits = as_signed(as_unsigned(t) & ((decltype(as_unsigned(t)){1} << shift) - 1));
  return t >> shift;
}
template <class Integer>
RH_INLINE Integer expand(Integer z, int shift, int64_t centre, Integer bits) {
  return wrapping_subtract(wrapping_add(shift_left(z, shift), bits), static_cast<Integer>(centre));
}

// What a step's contraction can give lies between these: rounding may reach the upper end.
template <class Layout>
RH_INLINE typename Layout::Integer lowest_contracted(int shift) {
  return -(typename Layout::Integer{1} << (Layout::limit_bits - shift));
}
template <class Layout>
RH_INLINE typename Layout::Integer largest_contracted(int shift) {
  return (typename Layout::Integer{1} << (Layout::limit_bits - shift)) - (shift == 0);
}
// Negative in any lane of an undone state that no step's contraction can have given: expanding it could lose its high bits.
template <class Layout, class Lanes>
RH_INLINE Lanes foreign_word(Lanes z, typename Layout::Integer largest, typename Layout::Integer lowest) {
  if constexpr (std::is_same<Lanes, typename Layout::Integer>::value)
    return wrapping_subtract(largest, z) | wrapping_subtract(z, lowest);
  else
    return (largest - z) | (z - lowest);
}

}  // namespace rh
