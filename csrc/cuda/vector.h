// Neighbouring elements of one thread, and how they come from memory and get there.
#pragma once

#include "table.h"

namespace rh {
namespace {

constexpr int L = 16 / static_cast<int>(sizeof(Integer));  // weights of a thread's vectors: 16 bytes of state
constexpr int kGroup = kRow / L;                           // threads of a block of weights: a row of it, a warp or half of one
static_assert(32 % kGroup == 0 && 8 % L == 0, "a group must not cross warps, nor a vector bytes of a plane");

__device__ __forceinline__ unsigned group_mask() {
  return kGroup == 32 ? 0xffffffffu : ((1u << kGroup % 32) - 1) << (threadIdx.x % 32 / kGroup * kGroup);
}

// Moves as one access, or as several of 16 bytes.
template <class T>
struct alignas(sizeof(T) * L < 16 ? sizeof(T) * L : 16) Vector {
  T at[L];
};

// As whole accesses, whatever the compiler makes of an assignment: nvcc splits many a one into its elements.
template <class Word, class T>
__device__ __forceinline__ void store_words(T* p, const Vector<T>& v) {
  constexpr int count = sizeof(Vector<T>) / sizeof(Word);
  Word words[count];
  memcpy(words, &v, sizeof words);
#pragma unroll
  for (int k = 0; k < count; ++k) __stwb(reinterpret_cast<Word*>(p) + k, words[k]);
}
template <class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& v) {
  if constexpr (sizeof(Vector<T>) >= 16)
    store_words<int4>(p, v);
  else if constexpr (sizeof(Vector<T>) == 8)
    store_words<int2>(p, v);
  else
    store_words<int>(p, v);
}

// A thread's part of a row: from the block's weight i on, `count` of its L weights exist. kWhole: all of them do, and so do all
// others of the block, at multiples of the vectors' alignment in every array.
template <bool kWhole>
struct Part {
  int i, count;

  // `begin`: of the block in the array.
  template <class T>
  __device__ __forceinline__ Vector<T> load(const T* array, int64_t begin) const {
    const T* p = array + (begin + i);
    if constexpr (kWhole) {
      return *reinterpret_cast<const Vector<T>*>(p);
    } else {
      Vector<T> v;
#pragma unroll
      for (int j = 0; j < L; ++j) v.at[j] = j < count ? p[j] : T{};
      return v;
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* array, int64_t begin, const Vector<T>& v) const {
    T* p = array + (begin + i);
    if constexpr (kWhole) {
      store_vector(p, v);
    } else {
#pragma unroll
      for (int j = 0; j < L; ++j)
        if (j < count) p[j] = v.at[j];
    }
  }
};

// Gradients or products. All threads of a group have the same type, so kernels need not be compiled for each.
template <class To, class Part>
__device__ __forceinline__ Vector<To> read(int type, const void* tensor, int64_t begin, const Part& part) {
  Vector<To> values;
  with_type(static_cast<ScalarType>(type), [&](auto example) {
    using T = decltype(example);
    const Vector<T> raw = part.load(static_cast<const T*>(tensor), begin);
#pragma unroll
    for (int j = 0; j < L; ++j) values.at[j] = static_cast<To>(widen(raw.at[j]));
  });
  return values;
}

// The weights that the model sees.
template <class Part>
__device__ __forceinline__ void show(int type, void* tensor, int64_t begin, const Part& part, const Vector<Integer>& x,
                                     double sigma) {
  with_type(static_cast<ScalarType>(type), [&](auto example) {
    using T = decltype(example);
    Vector<T> seen;
#pragma unroll
    for (int j = 0; j < L; ++j) seen.at[j] = visible<T, Layout>(x.at[j], sigma);
    part.store(static_cast<T*>(tensor), begin, seen);
  });
}

}  // namespace
}  // namespace rh
