// The four floating-point types of weights and gradients, read into and written from the arithmetic's Real.
//
// bfloat16 and float16 are converted by hand, branch-free, so that every path rounds alike (nearest even, as
// torch does: double -> float -> 16 bits) and no compiler support is assumed.
#pragma once

#include "numeric.h"

namespace rh {

enum class ScalarType : int32_t { float32, float64, bfloat16, float16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

RH_INLINE uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
RH_INLINE float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

RH_INLINE float widen(float x) { return x; }
RH_INLINE double widen(double x) { return x; }
RH_INLINE float widen(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }
RH_INLINE float widen(Float16 x) {
  // Shift into float position and rescale by 2^112: exact for normals and subnormals; inf and NaN are patched.
  uint32_t magnitude_bits = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  float scaled = bits_float(magnitude_bits) * 5192296858534827628530496329220096.0f;
  uint32_t value = (x.bits & 0x7c00) == 0x7c00 ? (magnitude_bits | 0x7f800000u) : float_bits(scaled);
  return bits_float(value | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

// Calls f with a value of the type.
template <class F>
RH_INLINE auto with_type(ScalarType type, F f) {
  switch (type) {
    case ScalarType::float32:
      return f(float{});
    case ScalarType::float64:
      return f(double{});
    case ScalarType::bfloat16:
      return f(BFloat16{});
    default:
      return f(Float16{});
  }
}

// From the state's Real. A double goes through float on its way to 16 bits.
template <class T>
RH_INLINE T narrow(double x);
template <class T>
RH_INLINE T narrow(float x);

template <>
RH_INLINE double narrow<double>(double x) {
  return x;
}
template <>
RH_INLINE double narrow<double>(float x) {
  return x;
}
template <>
RH_INLINE float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
RH_INLINE float narrow<float>(float x) {
  return x;
}
template <>
RH_INLINE BFloat16 narrow<BFloat16>(float x) {
  uint32_t u = float_bits(x);  // finite: weights are
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
RH_INLINE BFloat16 narrow<BFloat16>(double x) {
  return narrow<BFloat16>(static_cast<float>(x));
}
template <>
RH_INLINE Float16 narrow<Float16>(float x) {
  uint32_t u = float_bits(x), sign = u & 0x80000000u;
  u ^= sign;
  // Subnormal halves: adding 0.5 aligns the last bit of the half with the last bit of the float.
  uint32_t small = float_bits(bits_float(u) + 0.5f) - 0x3f000000u;
  uint32_t normal = (u - 0x38000000u + 0xfff + ((u >> 13) & 1)) >> 13;
  uint32_t half = u < 0x38800000u ? small : normal;
  half = u >= 0x47800000u ? 0x7c00u : half;
  return {static_cast<uint16_t>(half | sign >> 16)};
}
template <>
RH_INLINE Float16 narrow<Float16>(double x) {
  return narrow<Float16>(static_cast<float>(x));
}

}  // namespace rh
