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

// A thread's part of a row: from the block's weight i on, `count` of its L weights exist. `whole`: all of them do, and so do all
// others of the block, at multiples of the vectors' alignment in every array.
struct Part {
  int i, count;
  bool whole;

  template <class T>
  __device__ __forceinline__ Vector<T> load(const T* block) const {
    if (whole) return *reinterpret_cast<const Vector<T>*>(block + i);
    Vector<T> v;
#pragma unroll
    for (int j = 0; j < L; ++j) v.at[j] = j < count ? block[i + j] : T{};
    return v;
  }
  template <class T>
  __device__ __forceinline__ void store(T* block, const Vector<T>& v) const {
    if (whole) {
      *reinterpret_cast<Vector<T>*>(block + i) = v;
      return;
    }
#pragma unroll
    for (int j = 0; j < L; ++j)
      if (j < count) block[i + j] = v.at[j];
  }
};

// Calls f with a value of the type. All threads of a group have the same one, so kernels need not be compiled for each.
template <class F>
__device__ __forceinline__ void with_type(int type, F f) {
  switch (static_cast<ScalarType>(type)) {
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

// Gradients or products, `block` elements behind the tensor's first.
template <class To>
__device__ __forceinline__ Vector<To> read(int type, const void* tensor, int64_t block, const Part& part) {
  Vector<To> values;
  with_type(type, [&](auto example) {
    using T = decltype(example);
    const Vector<T> raw = part.load(static_cast<const T*>(tensor) + block);
#pragma unroll
    for (int j = 0; j < L; ++j) values.at[j] = static_cast<To>(widen(raw.at[j]));
  });
  return values;
}

// The weights that the model sees.
__device__ __forceinline__ void show(int type, void* tensor, int64_t block, const Part& part, const Vector<Integer>& x,
                                     double sigma) {
  with_type(type, [&](auto example) {
    using T = decltype(example);
    Vector<T> seen;
#pragma unroll
    for (int j = 0; j < L; ++j) seen.at[j] = visible<T, Layout>(x.at[j], sigma);
    part.store(static_cast<T*>(tensor) + block, seen);
  });
}

}  // namespace
}  // namespace rh
