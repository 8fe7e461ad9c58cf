// Lazy scales, on the host: integers Z of a slot stand for Z * a * 2^exponent, a in (1/2, 1]. A decay multiplies a; where that
// leaves its range it is doubled, and the integers are halved as often. See docs/arithmetic.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace rh {

struct Shift {
  int bits = 0;
  int64_t centre = 0;  // added before the shift: half of 2^bits, and every second time one less, so that halves go both ways
};

// How often a product in (0, 1] can be doubled and stay at most 1.
inline int halvings_of(double product) {
  int exponent;
  const bool power_of_two = std::frexp(product, &exponent) == 0.5;
  return power_of_two ? 1 - exponent : -exponent;
}

// The move of one slot's integers whose fraction has become `product`. `rescale`: further halvings at an unchanged value; the
// integers follow up to most_shift bits. count: the moves before.
inline Shift shift_of(double product, int64_t count, int64_t rescale, int most_shift) {
  const int halvings = halvings_of(product);
  const int bits = halvings + static_cast<int>(std::min<int64_t>(rescale, most_shift - halvings));
  return bits == 0 ? Shift{} : Shift{bits, (int64_t{1} << (bits - 1)) - (count & 1)};
}

}  // namespace rh
