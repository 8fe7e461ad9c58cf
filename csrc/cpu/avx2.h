// The operations of core/numeric.h on the lanes of one 256-bit register (AVX2, FMA, F16C): 4 of the 64-bit state, 8 of the
// 32-bit one. As avx512.h; what AVX2 lacks, conversions of 64-bit integers and unsigned maxima, is composed exactly.
#pragma once

#include <immintrin.h>

#include "../core/scalar_types.h"

namespace rh {

#define RH_PACK static inline __attribute__((always_inline))

struct I64x4 {
  __m256i r;
};
struct U64x4 {
  __m256i r;
};
struct F64x4 {
  __m256d r;
};
struct I32x8 {
  __m256i r;
};
struct U32x8 {
  __m256i r;
};
struct F32x8 {
  __m256 r;
};

RH_PACK F64x4 operator+(F64x4 a, double b) { return {_mm256_add_pd(a.r, _mm256_set1_pd(b))}; }
RH_PACK F64x4 operator+(F64x4 a, F64x4 b) { return {_mm256_add_pd(a.r, b.r)}; }
RH_PACK F64x4 operator-(F64x4 a, double b) { return {_mm256_sub_pd(a.r, _mm256_set1_pd(b))}; }
RH_PACK F64x4 operator*(F64x4 a, double b) { return {_mm256_mul_pd(a.r, _mm256_set1_pd(b))}; }
RH_PACK F64x4 operator*(F64x4 a, F64x4 b) { return {_mm256_mul_pd(a.r, b.r)}; }
RH_PACK F64x4 exact_multiply_add(F64x4 a, double b, F64x4 c) { return {_mm256_fmadd_pd(a.r, _mm256_set1_pd(b), c.r)}; }
RH_PACK F64x4 exact_multiply_add(F64x4 a, double b, double c) { return exact_multiply_add(a, b, F64x4{_mm256_set1_pd(c)}); }

// An integer added to 1.5 * 2^52, as a double or in its bits, is the same sum.
RH_PACK I64x4 small_to_integer(F64x4 x) {
  const __m256d magic = _mm256_set1_pd(6755399441055744.0);
  return {_mm256_sub_epi64(_mm256_castpd_si256(_mm256_add_pd(x.r, magic)), _mm256_castpd_si256(magic))};
}
RH_PACK F64x4 small_to_real(I64x4 x) {
  const __m256d magic = _mm256_set1_pd(6755399441055744.0);
  return {_mm256_sub_pd(_mm256_castsi256_pd(_mm256_add_epi64(x.r, _mm256_castpd_si256(magic))), magic)};
}

RH_PACK F64x4 round_small(F64x4 x) { return {_mm256_round_pd(x.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

// As a double, the sum is rounded as well. Numbers from 2^51 on are rare (a huge step, or one that is about to be refused) and
// go one by one.
RH_PACK I64x4 round_to_integer(F64x4 x) {
  const __m256d size = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x.r);
  if (_mm256_movemask_pd(_mm256_cmp_pd(size, _mm256_set1_pd(2251799813685248.0), _CMP_LT_OQ)) != 0xf) {
    alignas(32) double in[4];
    alignas(32) int64_t out[4];
    _mm256_store_pd(in, x.r);
    for (int i = 0; i < 4; ++i) out[i] = round_to_integer(in[i]);
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(out))};
  }
  return small_to_integer(x);
}

// The halves of x as doubles of exponents 2^84 and 2^52, joined by the one rounding of the last addition.
RH_PACK F64x4 to_real(I64x4 x) {
  const __m256i low = _mm256_blend_epi32(_mm256_set1_epi64x(0x4330000000000000), x.r, 0x55);
  const __m256i high = _mm256_xor_si256(_mm256_srli_epi64(x.r, 32), _mm256_set1_epi64x(0x4530000080000000));
  const __m256d offset = _mm256_set1_pd(0x1p84 + 0x1p63 + 0x1p52);
  return {_mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), offset), _mm256_castsi256_pd(low))};
}

// AVX2 shifts 64-bit lanes right by zeros only: made non-negative first, by the top bit.
template <int bits>
RH_PACK I64x4 shift_right(I64x4 x) {
  const __m256i shifted = _mm256_srli_epi64(_mm256_xor_si256(x.r, _mm256_set1_epi64x(INT64_MIN)), bits);
  return {_mm256_sub_epi64(shifted, _mm256_set1_epi64x(int64_t{1} << (63 - bits)))};
}
template <int bits>
RH_PACK I64x4 low_part(I64x4 x) {
  return {_mm256_and_si256(x.r, _mm256_set1_epi64x((1 << bits) - 1))};
}
template <int bits>
RH_PACK I64x4 shift_left(I64x4 x) {
  return {_mm256_slli_epi64(x.r, bits)};
}
RH_PACK U64x4 as_unsigned(I64x4 x) { return {x.r}; }
RH_PACK I64x4 as_signed(U64x4 x) { return {x.r}; }
RH_PACK I64x4 operator+(I64x4 a, I64x4 b) { return {_mm256_add_epi64(a.r, b.r)}; }
RH_PACK I64x4 operator+(I64x4 a, int64_t b) { return {_mm256_add_epi64(a.r, _mm256_set1_epi64x(b))}; }
RH_PACK I64x4 operator-(I64x4 a, int64_t b) { return {_mm256_sub_epi64(a.r, _mm256_set1_epi64x(b))}; }
RH_PACK I64x4 operator-(I64x4 a, I64x4 b) { return {_mm256_sub_epi64(a.r, b.r)}; }
RH_PACK I64x4 operator|(I64x4 a, I64x4 b) { return {_mm256_or_si256(a.r, b.r)}; }

RH_PACK F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.r, b.r)}; }
RH_PACK F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.r, b.r)}; }
RH_PACK F32x8 operator*(F32x8 a, float b) { return {_mm256_mul_ps(a.r, _mm256_set1_ps(b))}; }
RH_PACK I32x8 round_to_integer(F32x8 x) { return {_mm256_cvtps_epi32(x.r)}; }
RH_PACK F32x8 to_real(I32x8 x) { return {_mm256_cvtepi32_ps(x.r)}; }
RH_PACK U32x8 as_unsigned(I32x8 x) { return {x.r}; }
RH_PACK I32x8 as_signed(U32x8 x) { return {x.r}; }
RH_PACK I32x8 operator+(I32x8 a, I32x8 b) { return {_mm256_add_epi32(a.r, b.r)}; }
RH_PACK I32x8 operator+(I32x8 a, int32_t b) { return {_mm256_add_epi32(a.r, _mm256_set1_epi32(b))}; }
RH_PACK I32x8 operator-(I32x8 a, int32_t b) { return {_mm256_sub_epi32(a.r, _mm256_set1_epi32(b))}; }
RH_PACK I32x8 operator-(I32x8 a, I32x8 b) { return {_mm256_sub_epi32(a.r, b.r)}; }
RH_PACK I32x8 operator|(I32x8 a, I32x8 b) { return {_mm256_or_si256(a.r, b.r)}; }
RH_PACK U32x8 operator+(U32x8 a, U32x8 b) { return {_mm256_add_epi32(a.r, b.r)}; }
RH_PACK U32x8 operator-(U32x8 a, U32x8 b) { return {_mm256_sub_epi32(a.r, b.r)}; }
RH_PACK U32x8 operator+(U32x8 a, uint32_t b) { return {_mm256_add_epi32(a.r, _mm256_set1_epi32(static_cast<int>(b)))}; }
RH_PACK U32x8 operator-(U32x8 a, uint32_t b) { return {_mm256_sub_epi32(a.r, _mm256_set1_epi32(static_cast<int>(b)))}; }
RH_PACK U32x8 operator*(U32x8 a, uint32_t b) { return {_mm256_mullo_epi32(a.r, _mm256_set1_epi32(static_cast<int>(b)))}; }

// As in avx512.h: even and odd lanes apart, an odd lane's result wanted in the high half.
RH_PACK U32x8 multiply_shift(U32x8 x, uint32_t multiplier, int shift) {
  const __m256i m = _mm256_set1_epi64x(multiplier);
  const __m256i even = _mm256_srl_epi64(_mm256_mul_epu32(x.r, m), _mm_cvtsi32_si128(shift));
  __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x.r, 32), m);
  odd = _mm256_slli_epi64(_mm256_srl_epi64(odd, _mm_cvtsi32_si128(shift - 31)), 1);
  return {_mm256_blend_epi32(even, odd, 0xaa)};
}

// float32 values to the four types of weights; eight at a time.
RH_PACK __m128i to_bfloat16(__m256 value) {
  __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  bits = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0xd8);
  return _mm256_castsi256_si128(packed);
}
RH_PACK __m128i to_float16(__m256 value) { return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

template <class State>
struct Pack;

template <>
struct Pack<State64> {
  using Integer = I64x4;
  using Accumulator = U64x4;
  using Real = F64x4;
  static constexpr int width = 4;
  RH_PACK Integer zero() { return {_mm256_setzero_si256()}; }
  RH_PACK int64_t any_bit(Integer x) {
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.r);
    return lanes[0] | lanes[1] | lanes[2] | lanes[3];
  }
  RH_PACK Integer further(Integer record, Integer x) {
    const __m256i sign = _mm256_set1_epi64x(INT64_MIN);
    const __m256i larger = _mm256_cmpgt_epi64(_mm256_xor_si256(x.r, sign), _mm256_xor_si256(record.r, sign));
    return {_mm256_blendv_epi8(record.r, x.r, larger)};
  }
  RH_PACK uint64_t greatest(Integer record) {
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), record.r);
    uint64_t best = lanes[0];
    for (int i = 1; i < 4; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }
  RH_PACK Integer load(const int64_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  RH_PACK Accumulator load(const uint64_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  RH_PACK Real load(const double* p) { return {_mm256_loadu_pd(p)}; }
  RH_PACK void store(int64_t* p, Integer x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.r); }
  RH_PACK void store(uint64_t* p, Accumulator x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.r); }
  RH_PACK Real read(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  RH_PACK Real read(const double* p) { return {_mm256_loadu_pd(p)}; }
  RH_PACK Real read(const BFloat16* p) {
    const __m128i bits = _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 16);
    return {_mm256_cvtps_pd(_mm_castsi128_ps(bits))};
  }
  RH_PACK Real read(const Float16* p) {
    return {_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  RH_PACK __m128 value(Integer x, double quantum) { return _mm256_cvtpd_ps((to_real(x) * quantum).r); }
  RH_PACK void write(float* p, Integer x, double quantum) { _mm_storeu_ps(p, value(x, quantum)); }
  RH_PACK void write(double* p, Integer x, double quantum) { _mm256_storeu_pd(p, (to_real(x) * quantum).r); }
  RH_PACK void write(BFloat16* p, Integer x, double quantum) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), to_bfloat16(_mm256_castps128_ps256(value(x, quantum))));
  }
  RH_PACK void write(Float16* p, Integer x, double quantum) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), to_float16(_mm256_castps128_ps256(value(x, quantum))));
  }
};

template <>
struct Pack<State32> {
  using Integer = I32x8;
  using Accumulator = U32x8;
  using Real = F32x8;
  static constexpr int width = 8;
  RH_PACK Integer zero() { return {_mm256_setzero_si256()}; }
  RH_PACK int32_t any_bit(Integer x) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), x.r);
    int32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= lanes[i];
    return bits;
  }
  RH_PACK Integer further(Integer record, Integer x) { return {_mm256_max_epu32(record.r, x.r)}; }
  RH_PACK uint32_t greatest(Integer record) {
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), record.r);
    uint32_t best = lanes[0];
    for (int i = 1; i < 8; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }
  RH_PACK Integer load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  RH_PACK Accumulator load(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  RH_PACK Real load(const float* p) { return {_mm256_loadu_ps(p)}; }
  RH_PACK void store(int32_t* p, Integer x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.r); }
  RH_PACK void store(uint32_t* p, Accumulator x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.r); }
  RH_PACK Real read(const float* p) { return {_mm256_loadu_ps(p)}; }
  RH_PACK Real read(const double* p) {
    return {_mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)))};
  }
  RH_PACK Real read(const BFloat16* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
  }
  RH_PACK Real read(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  // int32 -> float rounds once and the quantum is a power of two: the same float as by way of double.
  RH_PACK __m256 value(Integer x, double quantum) { return (to_real(x) * static_cast<float>(quantum)).r; }
  RH_PACK void write(float* p, Integer x, double quantum) { _mm256_storeu_ps(p, value(x, quantum)); }
  RH_PACK void write(double* p, Integer x, double quantum) {
    const __m256d q = _mm256_set1_pd(quantum);
    _mm256_storeu_pd(p, _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(x.r)), q));
    _mm256_storeu_pd(p + 4, _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(x.r, 1)), q));
  }
  RH_PACK void write(BFloat16* p, Integer x, double quantum) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bfloat16(value(x, quantum)));
  }
  RH_PACK void write(Float16* p, Integer x, double quantum) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_float16(value(x, quantum)));
  }
};

}  // namespace rh
