// How many lanes a loop moves at once: a register of the instruction set that this is compiled for, or one.
//
// In an unnamed namespace, as everything that the instruction sets' builds share: the linker would else keep one build's
// functions for all.
#pragma once

#include "../core/sgd.h"
#if defined(__AVX512DQ__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rh {
namespace {

// One lane at a time: the remainder of a row, and whole rows where there is no SIMD form.
template <class State>
struct Single {
  using Integer = typename State::Integer;
  using Accumulator = typename State::Accumulator;
  using Real = typename State::Real;
  static constexpr int width = 1;
  static RH_INLINE Integer zero() { return 0; }
  static RH_INLINE Integer any_bit(Integer x) { return x; }
  // The larger one, as unsigned.
  static RH_INLINE Integer further(Integer record, Integer x) {
    return static_cast<Accumulator>(x) > static_cast<Accumulator>(record) ? x : record;
  }
  static RH_INLINE Accumulator greatest(Integer record) { return static_cast<Accumulator>(record); }
  template <class T>
  static RH_INLINE T load(const T* p) {
    return *p;
  }
  template <class T>
  static RH_INLINE void store(T* p, T x) {
    *p = x;
  }
  template <class T>
  static RH_INLINE Real read(const T* p) {
    return static_cast<Real>(widen(*p));
  }
  template <class T>
  static RH_INLINE void write(T* p, Integer x, double quantum) {
    *p = narrow<T>(static_cast<double>(x) * quantum);
  }
};

#if defined(__AVX2__)
template <class State>
using Wide = Pack<State>;
#else
template <class State>
using Wide = Single<State>;
#endif

}  // namespace
}  // namespace rh
