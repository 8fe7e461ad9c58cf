// The rational codec of 2015 without integer divisions: contraction by n/d of eight values per accumulator, in lockstep.
//
// Exactness of the floor divisions:
//  64-bit: everything is an integer below 2^50 held in a double, where sums and products that stay below 2^53 are exact.
//    For an integer x, x/d + c with c = 1/(2d) - 1/2 is at least 1/(2d) away from a tie, and the computed value is off by
//    less than 1.5 * 2^-52 * |x|/d < 1/(2d): rounding it to nearest gives floor(x/d). A velocity of up to 62 bits is divided
//    like a number of two digits, V = high * 2^12 + low with 0 <= low < 2^12.
//  32-bit: quotients by multiplication with m = ceil(2^(31+l)/d), l = ceil(log2 d). For x <= 2^31 + 2d and d <= 2^13 the
//    error x*(m*d - 2^(31+l)) stays below 2^(31+l), so (x*m) >> (31+l) is exactly x div d (Granlund, Montgomery 1994).
//    Values are made non-negative by a bias, the first multiple of d from 2^30 on.
#pragma once

#include <cstdint>

namespace rational {

// Nearest integer of |x| < 2^51, still a double: adding 1.5 * 2^52 leaves no fraction bits.
inline double round_small(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

template <class Integer>
struct Divisor;

template <>
struct Divisor<int64_t> {
  double value, reciprocal, centre;
  explicit Divisor(int64_t d) : value(static_cast<double>(d)), reciprocal(1.0 / value), centre(0.5 / value - 0.5) {}
  void divide(double x, double& quotient, double& remainder) const {
    quotient = round_small(x * reciprocal + centre);
    remainder = x - quotient * value;
  }
};

template <>
struct Divisor<int32_t> {
  uint32_t value, multiplier, bias_quotient;
  int shift;
  explicit Divisor(int64_t d) : value(static_cast<uint32_t>(d)) {
    int log = 0;
    while ((int64_t{1} << log) < d) ++log;
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + value - 1) / value);
    bias_quotient = ((uint32_t{1} << 30) + value - 1) / value;
  }
  void divide(uint32_t x, uint32_t& quotient, uint32_t& remainder) const {
    quotient = static_cast<uint32_t>((static_cast<uint64_t>(x) * multiplier) >> shift);
    remainder = x - quotient * value;
  }
};

inline void contract(int64_t& v, uint64_t& s, const Divisor<int64_t>& n, const Divisor<int64_t>& d) {
  double high, low, carry, digit, rest, out;
  d.divide(static_cast<double>(v >> 12), high, carry);
  d.divide(carry * 4096.0 + static_cast<double>(v & 4095), low, digit);
  n.divide(static_cast<double>(static_cast<int64_t>(s)) * d.value + digit, rest, out);
  s = static_cast<uint64_t>(static_cast<int64_t>(rest));
  v = static_cast<int64_t>(static_cast<uint64_t>(static_cast<int64_t>(high * n.value)) << 12) +
      static_cast<int64_t>(low * n.value + out);
}

inline void contract(int32_t& v, uint32_t& s, const Divisor<int32_t>& n, const Divisor<int32_t>& d) {
  uint32_t quotient, digit, rest, out;
  d.divide(static_cast<uint32_t>(v) + d.bias_quotient * d.value, quotient, digit);
  n.divide(s * d.value + digit, rest, out);
  s = rest;
  v = static_cast<int32_t>(quotient * n.value + out - d.bias_quotient * n.value);
}

}  // namespace rational
