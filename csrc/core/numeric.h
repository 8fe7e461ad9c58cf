// Scalar helpers shared by every path: plain C++, each SIMD build and CUDA.
//
// Three facts that surprise:
//  - Bits must agree on every path, so each floating-point operation below is one IEEE operation.
//    The build passes -ffp-contract=off and --fmad=false; with contraction, results differ between paths.
//  - Rounding is to nearest even, always. Truncating casts appear only on values that are integers already.
//  - Sums may wrap, since hostile input is refused only after the step: they go through wrapping_add and wrapping_subtract.
//    (The build passes -fwrapv, too, but device code has no such flag.)
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RH_INLINE __host__ __device__ __forceinline__
#else
#define RH_INLINE inline __attribute__((always_inline))
#endif

namespace rh {

// The arithmetic is written once, over "one or several lanes". These are the operations for one lane (plain C++ and CUDA);
// csrc/cpu/lanes.h gives the same ones for the lanes of a register.

// 1.5 * 2^52: a double of this size has no fraction bits, and its last bits are the integer that was added to it.
constexpr double kRounder = 6755399441055744.0;
constexpr int64_t kRounderBits = 0x4338000000000000;

// Nearest integer of |x| < 2^51. Elsewhere, NaN included, something outside of [-2^51, 2^51), by which the caller knows: the
// sum has another exponent than kRounder then.
RH_INLINE int64_t round_to_integer(double x) {
  const double sum = x + kRounder;
  int64_t bits;
  memcpy(&bits, &sum, 8);
  return static_cast<int64_t>(static_cast<uint64_t>(bits) - static_cast<uint64_t>(kRounderBits));
}

// Nearest integer of |x| <= 2^62; the nearer end of that range elsewhere, 2^62 for NaN. Multiples of 2^11 are rounded off first,
// as above, with a rounder 2^11 times as large; what is left of x is exact and at most 2^10. The multiples are even, so a half
// goes to the even integer.
constexpr double kWidest = 0x1p62;
constexpr int kWideBits = 11;
constexpr double kWideRounder = kRounder * (1 << kWideBits);
constexpr int64_t kWideRounderBits = kRounderBits + (int64_t{kWideBits} << 52);
RH_INLINE int64_t round_wide(double x) {
  x = x < kWidest ? x : kWidest;
  x = x > -kWidest ? x : -kWidest;
  const double sum = x + kWideRounder;
  int64_t bits;
  memcpy(&bits, &sum, 8);
  return (bits - kWideRounderBits) * (1 << kWideBits) + round_to_integer(x - (sum - kWideRounder));
}

// Nearest integer; the most negative one for NaN and for what does not fit.
RH_INLINE int32_t round_to_integer(float x) {
#if defined(__CUDA_ARCH__)
  return x < 2147483648.0f && x > -2147483648.0f ? __float2int_rn(x) : INT32_MIN;
#else
  return x < 2147483648.0f && x > -2147483648.0f ? static_cast<int32_t>(__builtin_rintf(x)) : INT32_MIN;
#endif
}

RH_INLINE double to_real(int64_t x) { return static_cast<double>(x); }
RH_INLINE float to_real(int32_t x) { return static_cast<float>(x); }

// The same bits as another integer type.
RH_INLINE uint64_t as_unsigned(int64_t x) { return static_cast<uint64_t>(x); }
RH_INLINE uint32_t as_unsigned(int32_t x) { return static_cast<uint32_t>(x); }
RH_INLINE int64_t as_signed(uint64_t x) { return static_cast<int64_t>(x); }
RH_INLINE int32_t as_signed(uint32_t x) { return static_cast<int32_t>(x); }

// Sums and doubles modulo 2^bits.
template <class Integer>
RH_INLINE Integer wrapping_add(Integer a, Integer b) {
  return as_signed(as_unsigned(a) + as_unsigned(b));
}
template <class Integer>
RH_INLINE Integer wrapping_subtract(Integer a, Integer b) {
  return as_signed(as_unsigned(a) - as_unsigned(b));
}
template <class Integer>
RH_INLINE Integer shift_left(Integer x, int bits) {
  return as_signed(as_unsigned(x) << bits);
}

RH_INLINE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
RH_INLINE double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// a * b + c, rounded once: a fused multiply-add that is written as one on every path. Without the instruction it is slow.
RH_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
RH_INLINE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

}  // namespace rh
