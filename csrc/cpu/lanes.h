// Registers of the instruction set that this is compiled for, as the compiler's vector types: their operators are the integer
// and IEEE operations of each lane. What those lack stands here; each is the same operation as the one-lane version in core/.
//
// In an unnamed namespace, as everything that the instruction sets' builds share: the linker would else keep one build's
// functions for all.
#pragma once

#include "../core/fixed_point.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rh {
namespace {

#if defined(__AVX512DQ__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T, int width>
struct LanesOf {
  typedef T type __attribute__((vector_size(sizeof(T) * width)));
};
template <class T, int width>
using Lanes = typename LanesOf<T, width>::type;

template <class V, class T>
RH_INLINE V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
RH_INLINE void store(T* p, V v) {
  memcpy(p, &v, sizeof v);
}
template <class V, class T>
RH_INLINE V all(T x) {
  return x - V{};  // not a sum, which would turn -0 into +0
}
template <class To, class V>
RH_INLINE To as_bits(V v) {
  static_assert(sizeof(To) == sizeof(V), "the same bits");
  To to;
  memcpy(&to, &v, sizeof v);
  return to;
}

// Lane j is bit j.
template <class Integer, int width>
RH_INLINE Integer lanes_of_bits(unsigned bits) {
  Integer own;
  for (int j = 0; j < width; ++j) own[j] = 1 << j;
  using Element = std::remove_reference_t<decltype(own[0])>;
  return -static_cast<Integer>((all<Integer>(static_cast<Element>(bits)) & own) != 0);
}

// The lanes of a layout: its integers, its reals, and how many of them fill a register.
template <class Layout>
struct Pack;

template <>
struct Pack<Layout64> {
  static constexpr int width = kRegisterBytes / 8;
  using Integer = Lanes<int64_t, width>;
  using Words = Lanes<uint64_t, width>;  // as the hash sees them
  using Real = Lanes<double, width>;
  using Single = Lanes<float, width>;

  static RH_INLINE Integer round(Real x) { return as_bits<Integer>(x + kRounder) - kRounderBits; }
  static RH_INLINE Real real(Integer x) {
#if defined(__AVX512DQ__)
    return __builtin_convertvector(x, Real);
#else
    // The halves of x as doubles of exponents 2^84 and 2^52, joined by the one rounding of the last addition.
    const Words bits = as_bits<Words>(x);
#if defined(__AVX2__)
    const Words low = as_bits<Words>(_mm256_blend_epi32(_mm256_set1_epi64x(0x4330000000000000), as_bits<__m256i>(x), 0x55));
#else
    const Words low = (bits & 0xffffffffull) | 0x4330000000000000ull;
#endif
    const Words high = (bits >> 32) ^ 0x4530000080000000ull;
    return (as_bits<Real>(high) - (0x1p84 + 0x1p63 + 0x1p52)) + as_bits<Real>(low);
#endif
  }
  static RH_INLINE Single single(Real x) { return __builtin_convertvector(x, Single); }
  static RH_INLINE Real widened(Single x) {
#if defined(__AVX2__) && !defined(__AVX512DQ__)
    return as_bits<Real>(_mm256_cvtps_pd(as_bits<__m128>(x)));  // the compiler would do it in halves
#else
    return __builtin_convertvector(x, Real);
#endif
  }

  // Bit 0 of every lane, lane j at bit j.
  static RH_INLINE unsigned low_bits(Integer x) {
#if defined(__AVX512DQ__)
    return _mm512_test_epi64_mask(as_bits<__m512i>(x), _mm512_set1_epi64(1));
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_pd(as_bits<__m256d>(x << 63)));
#elif defined(__x86_64__)
    return static_cast<unsigned>(_mm_movemask_pd(as_bits<__m128d>(x << 63)));
#else
    unsigned bits = 0;
    for (int j = 0; j < width; ++j) bits |= static_cast<unsigned>(x[j] & 1) << j;
    return bits;
#endif
  }
  static RH_INLINE Integer from_bits(unsigned bits) {
#if defined(__AVX512DQ__)
    return as_bits<Integer>(_mm512_maskz_set1_epi64(static_cast<__mmask8>(bits), 1));
#else
    return lanes_of_bits<Integer, width>(bits);
#endif
  }
};

// The same but for what is added to it.
template <>
struct Pack<LayoutSquares> : Pack<Layout64> {
  static RH_INLINE Integer round(Real x) {
    x = limited(x);
#if defined(__AVX512DQ__)
    return as_bits<Integer>(_mm512_cvtpd_epi64(as_bits<__m512d>(x)));
#else
    // round_wide with both rounders' bits taken off at once.
    constexpr uint64_t rounders = (static_cast<uint64_t>(kWideRounderBits) << kWideBits) + static_cast<uint64_t>(kRounderBits);
    const Real sum = x + kWideRounder;
    const Words rest = as_bits<Words>((x - (sum - kWideRounder)) + kRounder);
    return as_bits<Integer>((as_bits<Words>(sum) << kWideBits) + (rest - rounders));
#endif
  }

 private:
  // These instructions give their second operand where one is NaN.
  static RH_INLINE Real limited(Real x) {
    const Real widest = all<Real>(kWidest);
#if defined(__AVX512DQ__)
    const __m512d least = _mm512_min_pd(as_bits<__m512d>(x), as_bits<__m512d>(widest));
    return as_bits<Real>(_mm512_max_pd(least, as_bits<__m512d>(-widest)));
#elif defined(__AVX2__)
    const __m256d least = _mm256_min_pd(as_bits<__m256d>(x), as_bits<__m256d>(widest));
    return as_bits<Real>(_mm256_max_pd(least, as_bits<__m256d>(-widest)));
#elif defined(__x86_64__)
    const __m128d least = _mm_min_pd(as_bits<__m128d>(x), as_bits<__m128d>(widest));
    return as_bits<Real>(_mm_max_pd(least, as_bits<__m128d>(-widest)));
#else
    x = x < widest ? x : widest;
    return x > -widest ? x : -widest;
#endif
  }
};

template <>
struct Pack<Layout32> {
  static constexpr int width = kRegisterBytes / 4;
  using Integer = Lanes<int32_t, width>;
  using Words = Lanes<uint64_t, width / 2>;
  using Real = Lanes<float, width>;
  using Single = Real;

  static RH_INLINE Integer round(Real x) {
#if defined(__AVX512F__)
    return as_bits<Integer>(_mm512_cvtps_epi32(as_bits<__m512>(x)));
#elif defined(__AVX2__)
    return as_bits<Integer>(_mm256_cvtps_epi32(as_bits<__m256>(x)));
#elif defined(__x86_64__)
    return as_bits<Integer>(_mm_cvtps_epi32(as_bits<__m128>(x)));
#else
    Integer rounded;
    for (int j = 0; j < width; ++j) rounded[j] = round_to_integer(x[j]);
    return rounded;
#endif
  }
  static RH_INLINE Real real(Integer x) { return __builtin_convertvector(x, Real); }
  static RH_INLINE Single single(Real x) { return x; }
  static RH_INLINE Real widened(Single x) { return x; }

  static RH_INLINE unsigned low_bits(Integer x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(as_bits<__m512i>(x), _mm512_set1_epi32(1));
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_ps(as_bits<__m256>(x << 31)));
#elif defined(__x86_64__)
    return static_cast<unsigned>(_mm_movemask_ps(as_bits<__m128>(x << 31)));
#else
    unsigned bits = 0;
    for (int j = 0; j < width; ++j) bits |= static_cast<unsigned>(x[j] & 1) << j;
    return bits;
#endif
  }
  static RH_INLINE Integer from_bits(unsigned bits) {
#if defined(__AVX512F__)
    return as_bits<Integer>(_mm512_maskz_set1_epi32(static_cast<__mmask16>(bits), 1));
#else
    return lanes_of_bits<Integer, width>(bits);
#endif
  }
};

// Gradients, read into the layout's reals.
template <class P>
RH_INLINE typename P::Real read(const float* p) {
  return P::widened(load<typename P::Single>(p));
}
template <class P>
RH_INLINE typename P::Real read(const double* p) {
  return __builtin_convertvector(load<Lanes<double, P::width>>(p), typename P::Real);
}
template <class P>
RH_INLINE typename P::Real read(const BFloat16* p) {
  using Bits = Lanes<uint32_t, P::width>;
  const Bits bits = __builtin_convertvector(load<Lanes<uint16_t, P::width>>(p), Bits) << 16;
  return P::widened(as_bits<typename P::Single>(bits));
}
template <class P>
RH_INLINE typename P::Real read(const Float16* p) {
  typename P::Single values;
#if defined(__AVX512F__)
  if constexpr (P::width == 16)
    values = as_bits<typename P::Single>(_mm512_cvtph_ps(load<__m256i>(p)));
  else
    values = as_bits<typename P::Single>(_mm256_cvtph_ps(load<__m128i>(p)));
#elif defined(__F16C__)
  if constexpr (P::width == 8)
    values = as_bits<typename P::Single>(_mm256_cvtph_ps(load<__m128i>(p)));
  else
    values = as_bits<typename P::Single>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  for (int j = 0; j < P::width; ++j) values[j] = widen(p[j]);
#endif
  return P::widened(values);
}

// To memory, past the cache if `stream`: that spares the read of a line which is overwritten whole, and pays where the weights do
// not fit the cache anyway. p then is a multiple of the bytes that are written.
template <class V, class T>
RH_INLINE void put(T* p, V v, bool stream) {
#if defined(__x86_64__)
  if (stream) {
#if defined(__AVX512F__)
    if constexpr (sizeof v == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), as_bits<__m512i>(v));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof v == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), as_bits<__m256i>(v));
#endif
    if constexpr (sizeof v == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), as_bits<__m128i>(v));
    if constexpr (sizeof v == 8) return _mm_stream_si64(reinterpret_cast<long long*>(p), as_bits<long long>(v));
  }
#endif
  (void)stream;
  store(p, v);
}

// The weights that the model sees.
template <class P>
RH_INLINE void write(float* p, typename P::Integer x, typename P::Real sigma, double, bool stream) {
  put(p, P::single(P::real(x) * sigma), stream);
}
template <class P>
RH_INLINE void write(double* p, typename P::Integer x, typename P::Real, double sigma, bool stream) {
  using Wide = Lanes<double, P::width>;
  if constexpr (sizeof(typename P::Real) == sizeof(Wide))
    put(p, P::real(x) * sigma, stream);
  else
    put(p, __builtin_convertvector(x, Wide) * sigma, stream);
}
template <class P>
RH_INLINE void write(BFloat16* p, typename P::Integer x, typename P::Real sigma, double, bool stream) {
  using Bits = Lanes<uint32_t, P::width>;
  const Bits bits = as_bits<Bits>(P::single(P::real(x) * sigma));  // finite: weights are
  put(p, __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Lanes<uint16_t, P::width>), stream);
}
template <class P>
RH_INLINE void write(Float16* p, typename P::Integer x, typename P::Real sigma, double, bool stream) {
  const typename P::Single values = P::single(P::real(x) * sigma);
#if defined(__AVX512F__)
  if constexpr (P::width == 16)
    put(p, _mm512_cvtps_ph(as_bits<__m512>(values), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), stream);
  else
    put(p, _mm256_cvtps_ph(as_bits<__m256>(values), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), stream);
#elif defined(__F16C__)
  if constexpr (P::width == 8)
    put(p, _mm256_cvtps_ph(as_bits<__m256>(values), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), stream);
  else
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                     _mm_cvtps_ph(as_bits<__m128>(values), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  (void)stream;
  for (int j = 0; j < P::width; ++j) p[j] = narrow<Float16>(values[j]);
#endif
}

// low32 * high32 of every word: what hash_word multiplies.
template <class Words>
RH_INLINE Words multiply_halves(Words keyed) {
#if defined(__AVX512F__)
  return as_bits<Words>(_mm512_mul_epu32(as_bits<__m512i>(keyed), as_bits<__m512i>(keyed >> 32)));
#elif defined(__AVX2__)
  return as_bits<Words>(_mm256_mul_epu32(as_bits<__m256i>(keyed), as_bits<__m256i>(keyed >> 32)));
#elif defined(__x86_64__)
  return as_bits<Words>(_mm_mul_epu32(as_bits<__m128i>(keyed), as_bits<__m128i>(keyed >> 32)));
#else
  return (keyed & 0xffffffffull) * (keyed >> 32);
#endif
}

template <class V>
RH_INLINE V square_root(V v) {
  using Element = std::remove_cv_t<std::remove_reference_t<decltype(v[0])>>;
  constexpr bool is_double = sizeof(Element) == 8;
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64)
    return is_double ? as_bits<V>(_mm512_sqrt_pd(as_bits<__m512d>(v))) : as_bits<V>(_mm512_sqrt_ps(as_bits<__m512>(v)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32)
    return is_double ? as_bits<V>(_mm256_sqrt_pd(as_bits<__m256d>(v))) : as_bits<V>(_mm256_sqrt_ps(as_bits<__m256>(v)));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof v == 16)
    return is_double ? as_bits<V>(_mm_sqrt_pd(as_bits<__m128d>(v))) : as_bits<V>(_mm_sqrt_ps(as_bits<__m128>(v)));
#endif
  V root;
  for (unsigned j = 0; j < sizeof v / sizeof(Element); ++j) root[j] = rh::square_root(static_cast<Element>(v[j]));
  return root;
}

// A register of floats as two halves, and back.
template <class Half, class V>
RH_INLINE void split(V v, Half (&halves)[2]) {
#if defined(__AVX512DQ__)
  halves[0] = as_bits<Half>(_mm512_castps512_ps256(as_bits<__m512>(v)));
  halves[1] = as_bits<Half>(_mm512_extractf32x8_ps(as_bits<__m512>(v), 1));
#elif defined(__AVX2__)
  halves[0] = as_bits<Half>(_mm256_castps256_ps128(as_bits<__m256>(v)));
  halves[1] = as_bits<Half>(_mm256_extractf128_ps(as_bits<__m256>(v), 1));
#else
  memcpy(halves, &v, sizeof v);
#endif
}
template <class V, class Half>
RH_INLINE V join(const Half (&halves)[2]) {
#if defined(__AVX512DQ__)
  return as_bits<V>(_mm512_insertf32x8(_mm512_castps256_ps512(as_bits<__m256>(halves[0])), as_bits<__m256>(halves[1]), 1));
#elif defined(__AVX2__)
  return as_bits<V>(_mm256_insertf128_ps(_mm256_castps128_ps256(as_bits<__m128>(halves[0])), as_bits<__m128>(halves[1]), 1));
#else
  V v;
  memcpy(&v, halves, sizeof v);
  return v;
#endif
}

// The OR of all lanes.
template <class V>
RH_INLINE auto any_bit(V v) {
  auto bits = v[0];
  for (unsigned j = 1; j < sizeof v / sizeof bits; ++j) bits |= v[j];
  return bits;
}

}  // namespace
}  // namespace rh
