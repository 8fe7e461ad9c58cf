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

// The arithmetic is written once, over a type of "one or several lanes". These are the operations for one lane
// (plain C++ and CUDA); csrc/cpu/avx512.h gives the same ones for 8 or 16 lanes.

// Nearest integer; the most negative one for NaN and for what does not fit.
RH_INLINE int64_t round_to_integer(double x) {
#if defined(__CUDA_ARCH__)
  return x < 9223372036854775808.0 && x > -9223372036854775808.0 ? __double2ll_rn(x) : INT64_MIN;
#else
  return x < 9223372036854775808.0 && x > -9223372036854775808.0 ? static_cast<int64_t>(__builtin_rint(x)) : INT64_MIN;
#endif
}

RH_INLINE int32_t round_to_integer(float x) {
#if defined(__CUDA_ARCH__)
  return x < 2147483648.0f && x > -2147483648.0f ? __float2int_rn(x) : INT32_MIN;
#else
  return x < 2147483648.0f && x > -2147483648.0f ? static_cast<int32_t>(__builtin_rintf(x)) : INT32_MIN;
#endif
}

RH_INLINE double to_real(int64_t x) { return static_cast<double>(x); }
RH_INLINE float to_real(int32_t x) { return static_cast<float>(x); }

// The same for integers from -2^51 to 2^51 - 1, held in either type: cheaper where a machine has no conversion of 64 bits.
RH_INLINE int64_t small_to_integer(double x) { return static_cast<int64_t>(x); }
RH_INLINE double small_to_real(int64_t x) { return static_cast<double>(x); }

// The same bits as another integer type.
RH_INLINE uint64_t as_unsigned(int64_t x) { return static_cast<uint64_t>(x); }
RH_INLINE uint32_t as_unsigned(int32_t x) { return static_cast<uint32_t>(x); }
RH_INLINE int64_t as_signed(uint64_t x) { return static_cast<int64_t>(x); }
RH_INLINE int32_t as_signed(uint32_t x) { return static_cast<int32_t>(x); }

// Sums modulo 2^bits. Packs of lanes wrap as the hardware does.
template <class Pack, class Other>
RH_INLINE Pack wrapping_add(Pack a, Other b) {
  return a + b;
}
template <class Pack, class Other>
RH_INLINE Pack wrapping_subtract(Pack a, Other b) {
  return a - b;
}
RH_INLINE int64_t wrapping_add(int64_t a, int64_t b) { return as_signed(as_unsigned(a) + as_unsigned(b)); }
RH_INLINE int32_t wrapping_add(int32_t a, int32_t b) { return as_signed(as_unsigned(a) + as_unsigned(b)); }
RH_INLINE int64_t wrapping_subtract(int64_t a, int64_t b) { return as_signed(as_unsigned(a) - as_unsigned(b)); }
RH_INLINE int32_t wrapping_subtract(int32_t a, int32_t b) { return as_signed(as_unsigned(a) - as_unsigned(b)); }

// Floor division by 2^bits, its remainder, and multiplication by 2^bits.
template <int bits>
RH_INLINE int64_t shift_right(int64_t x) {
  return x >> bits;
}
template <int bits>
RH_INLINE int64_t low_part(int64_t x) {
  return x & ((int64_t{1} << bits) - 1);
}
template <int bits>
RH_INLINE int64_t shift_left(int64_t x) {
  return static_cast<int64_t>(static_cast<uint64_t>(x) << bits);
}

// a * b + c where the result is an integer that a double holds exactly (or needs no exactness at all, see
// Divisor<State64>): fused or not, the outcome is the same.
RH_INLINE double exact_multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return a * b + c;
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

// (x * multiplier) >> shift on the 64-bit product; 31 <= shift.
RH_INLINE uint32_t multiply_shift(uint32_t x, uint32_t multiplier, int shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(x) * multiplier) >> shift);
}

// Nearest integer of |x| < 2^51, still a real: adding 1.5 * 2^52 leaves no fraction bits.
template <class Real>
RH_INLINE Real round_small(Real x) {
  constexpr double magic = 6755399441055744.0;
  return (x + magic) - magic;
}

}  // namespace rh
