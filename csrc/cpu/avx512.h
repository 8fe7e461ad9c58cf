// The operations of core/numeric.h on the lanes of one 512-bit register: 8 of the 64-bit state, 16 of the 32-bit one.
// Each is the same IEEE or integer operation as the one-lane version; the arithmetic itself is only in core/.
#pragma once

#include <immintrin.h>

#include "../core/scalar_types.h"

namespace rh {

#define RH_PACK static inline __attribute__((always_inline))

struct I64x8 {
  __m512i r;
};
struct U64x8 {
  __m512i r;
};
struct F64x8 {
  __m512d r;
};
struct I32x16 {
  __m512i r;
};
struct U32x16 {
  __m512i r;
};
struct F32x16 {
  __m512 r;
};

RH_PACK F64x8 operator+(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.r, b.r)}; }
RH_PACK F64x8 operator+(F64x8 a, double b) { return {_mm512_add_pd(a.r, _mm512_set1_pd(b))}; }
RH_PACK F64x8 operator-(F64x8 a, double b) { return {_mm512_sub_pd(a.r, _mm512_set1_pd(b))}; }
RH_PACK F64x8 operator*(F64x8 a, double b) { return {_mm512_mul_pd(a.r, _mm512_set1_pd(b))}; }
RH_PACK F64x8 operator*(F64x8 a, F64x8 b) { return {_mm512_mul_pd(a.r, b.r)}; }
RH_PACK F64x8 exact_multiply_add(F64x8 a, double b, F64x8 c) { return {_mm512_fmadd_pd(a.r, _mm512_set1_pd(b), c.r)}; }
RH_PACK F64x8 exact_multiply_add(F64x8 a, double b, double c) { return exact_multiply_add(a, b, F64x8{_mm512_set1_pd(c)}); }
RH_PACK I64x8 round_to_integer(F64x8 x) { return {_mm512_cvtpd_epi64(x.r)}; }
RH_PACK F64x8 to_real(I64x8 x) { return {_mm512_cvtepi64_pd(x.r)}; }
RH_PACK I64x8 small_to_integer(F64x8 x) { return round_to_integer(x); }
RH_PACK F64x8 small_to_real(I64x8 x) { return to_real(x); }
template <int bits>
RH_PACK I64x8 shift_right(I64x8 x) {
  return {_mm512_srai_epi64(x.r, bits)};
}
template <int bits>
RH_PACK I64x8 low_part(I64x8 x) {
  return {_mm512_and_si512(x.r, _mm512_set1_epi64((1 << bits) - 1))};
}
template <int bits>
RH_PACK I64x8 shift_left(I64x8 x) {
  return {_mm512_slli_epi64(x.r, bits)};
}
RH_PACK U64x8 as_unsigned(I64x8 x) { return {x.r}; }
RH_PACK I64x8 as_signed(U64x8 x) { return {x.r}; }
RH_PACK I64x8 operator+(I64x8 a, I64x8 b) { return {_mm512_add_epi64(a.r, b.r)}; }
RH_PACK I64x8 operator+(I64x8 a, int64_t b) { return {_mm512_add_epi64(a.r, _mm512_set1_epi64(b))}; }
RH_PACK I64x8 operator-(I64x8 a, int64_t b) { return {_mm512_sub_epi64(a.r, _mm512_set1_epi64(b))}; }
RH_PACK I64x8 operator-(I64x8 a, I64x8 b) { return {_mm512_sub_epi64(a.r, b.r)}; }
RH_PACK I64x8 operator|(I64x8 a, I64x8 b) { return {_mm512_or_si512(a.r, b.r)}; }

RH_PACK F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.r, b.r)}; }
RH_PACK F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.r, b.r)}; }
RH_PACK F32x16 operator*(F32x16 a, float b) { return {_mm512_mul_ps(a.r, _mm512_set1_ps(b))}; }
RH_PACK I32x16 round_to_integer(F32x16 x) { return {_mm512_cvtps_epi32(x.r)}; }
RH_PACK F32x16 to_real(I32x16 x) { return {_mm512_cvtepi32_ps(x.r)}; }
RH_PACK U32x16 as_unsigned(I32x16 x) { return {x.r}; }
RH_PACK I32x16 as_signed(U32x16 x) { return {x.r}; }
RH_PACK I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.r, b.r)}; }
RH_PACK I32x16 operator+(I32x16 a, int32_t b) { return {_mm512_add_epi32(a.r, _mm512_set1_epi32(b))}; }
RH_PACK I32x16 operator-(I32x16 a, int32_t b) { return {_mm512_sub_epi32(a.r, _mm512_set1_epi32(b))}; }
RH_PACK I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.r, b.r)}; }
RH_PACK I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.r, b.r)}; }
RH_PACK U32x16 operator+(U32x16 a, U32x16 b) { return {_mm512_add_epi32(a.r, b.r)}; }
RH_PACK U32x16 operator-(U32x16 a, U32x16 b) { return {_mm512_sub_epi32(a.r, b.r)}; }
RH_PACK U32x16 operator+(U32x16 a, uint32_t b) { return {_mm512_add_epi32(a.r, _mm512_set1_epi32(static_cast<int>(b)))}; }
RH_PACK U32x16 operator-(U32x16 a, uint32_t b) { return {_mm512_sub_epi32(a.r, _mm512_set1_epi32(static_cast<int>(b)))}; }
RH_PACK U32x16 operator*(U32x16 a, uint32_t b) { return {_mm512_mullo_epi32(a.r, _mm512_set1_epi32(static_cast<int>(b)))}; }

// Products of even and odd lanes apart; an odd lane's result is wanted in the high half: (p >> (shift - 31)) << 1.
RH_PACK U32x16 multiply_shift(U32x16 x, uint32_t multiplier, int shift) {
  __m512i m = _mm512_set1_epi64(multiplier);
  __m512i even = _mm512_srl_epi64(_mm512_mul_epu32(x.r, m), _mm_cvtsi32_si128(shift));
  __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x.r, 32), m);
  odd = _mm512_slli_epi64(_mm512_srl_epi64(odd, _mm_cvtsi32_si128(shift - 31)), 1);
  return {_mm512_mask_blend_epi32(0xaaaa, even, odd)};
}

// Loads, stores and the gathering of checks, found by the state's width.
template <class State>
struct Pack;

template <>
struct Pack<State64> {
  using Integer = I64x8;
  using Accumulator = U64x8;
  using Real = F64x8;
  static constexpr int width = 8;
  RH_PACK Integer zero() { return {_mm512_setzero_si512()}; }
  RH_PACK int64_t any_bit(Integer x) { return _mm512_reduce_or_epi64(x.r); }
  RH_PACK Integer further(Integer record, Integer x) { return {_mm512_max_epu64(record.r, x.r)}; }
  RH_PACK uint64_t greatest(Integer record) { return _mm512_reduce_max_epu64(record.r); }
  RH_PACK Integer load(const int64_t* p) { return {_mm512_loadu_si512(p)}; }
  RH_PACK Real load(const double* p) { return {_mm512_loadu_pd(p)}; }
  RH_PACK Accumulator load(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
  RH_PACK void store(int64_t* p, Integer x) { _mm512_storeu_si512(p, x.r); }
  RH_PACK void store(uint64_t* p, Accumulator x) { _mm512_storeu_si512(p, x.r); }
  RH_PACK Real read(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  RH_PACK Real read(const double* p) { return {_mm512_loadu_pd(p)}; }
  RH_PACK Real read(const BFloat16* p) {
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
    return {_mm512_cvtps_pd(_mm256_castsi256_ps(bits))};
  }
  RH_PACK Real read(const Float16* p) {
    return {_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  // The weight that the model sees: x quanta, rounded to the parameter's type.
  RH_PACK void write(float* p, Integer x, double quantum) { _mm256_storeu_ps(p, _mm512_cvtpd_ps((to_real(x) * quantum).r)); }
  RH_PACK void write(double* p, Integer x, double quantum) { _mm512_storeu_pd(p, (to_real(x) * quantum).r); }
  RH_PACK void write(BFloat16* p, Integer x, double quantum) {
    __m256i bits = _mm256_castps_si256(_mm512_cvtpd_ps((to_real(x) * quantum).r));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtepi32_epi16(bits));
  }
  RH_PACK void write(Float16* p, Integer x, double quantum) {
    __m256 value = _mm512_cvtpd_ps((to_real(x) * quantum).r);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

template <>
struct Pack<State32> {
  using Integer = I32x16;
  using Accumulator = U32x16;
  using Real = F32x16;
  static constexpr int width = 16;
  RH_PACK Integer zero() { return {_mm512_setzero_si512()}; }
  RH_PACK int32_t any_bit(Integer x) { return _mm512_reduce_or_epi32(x.r); }
  RH_PACK Integer further(Integer record, Integer x) { return {_mm512_max_epu32(record.r, x.r)}; }
  RH_PACK uint32_t greatest(Integer record) { return _mm512_reduce_max_epu32(record.r); }
  RH_PACK Integer load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  RH_PACK Real load(const float* p) { return {_mm512_loadu_ps(p)}; }
  RH_PACK Accumulator load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  RH_PACK void store(int32_t* p, Integer x) { _mm512_storeu_si512(p, x.r); }
  RH_PACK void store(uint32_t* p, Accumulator x) { _mm512_storeu_si512(p, x.r); }
  RH_PACK Real read(const float* p) { return {_mm512_loadu_ps(p)}; }
  RH_PACK Real read(const double* p) {
    __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(p)));
    return {_mm512_insertf32x8(low, _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)), 1)};
  }
  RH_PACK Real read(const BFloat16* p) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
  }
  RH_PACK Real read(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  // int32 -> float rounds once and the quantum is a power of two: the same float as by way of double.
  RH_PACK __m512 value(Integer x, double quantum) { return (to_real(x) * static_cast<float>(quantum)).r; }
  RH_PACK void write(float* p, Integer x, double quantum) { _mm512_storeu_ps(p, value(x, quantum)); }
  RH_PACK void write(double* p, Integer x, double quantum) {
    __m512d q = _mm512_set1_pd(quantum);
    _mm512_storeu_pd(p, _mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(x.r)), q));
    _mm512_storeu_pd(p + 8, _mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(x.r, 1)), q));
  }
  RH_PACK void write(BFloat16* p, Integer x, double quantum) {
    __m512i bits = _mm512_castps_si512(value(x, quantum));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
  }
  RH_PACK void write(Float16* p, Integer x, double quantum) {
    __m256i half = _mm512_cvtps_ph(value(x, quantum), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
  }
};

}  // namespace rh
