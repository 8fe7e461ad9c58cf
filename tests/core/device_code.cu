// Compiled, never run, where nvcc is found: csrc/core must stay valid device code.
#include "../../csrc/core/hash.h"
#include "../../csrc/core/scalar_types.h"
#include "../../csrc/core/sgd.h"

template <class State, class T>
__global__ void step(typename State::Integer* x, typename State::Integer* v, typename State::Accumulator* s, T* weight,
                     const T* gradient, rh::Coefficients<State> c, rh::Divisor<State> n, rh::Divisor<State> d, double quantum,
                     unsigned long long* hash) {
  const int i = threadIdx.x;
  rh::contract(v[i], s[i], n, d);
  v[i] += rh::gradient_quanta<true, State>(static_cast<typename State::Real>(rh::widen(gradient[i])), x[i], c);
  x[i] -= rh::weight_change<State>(v[i], c.lr);
  weight[i] = rh::narrow<T>(static_cast<double>(x[i]) * quantum);
  *hash += rh::hash_finish(rh::hash_word(static_cast<uint64_t>(v[i]), i), i, 1);
}

template __global__ void step<rh::State64, float>(int64_t*, int64_t*, uint64_t*, float*, const float*,
                                                  rh::Coefficients<rh::State64>, rh::Divisor<rh::State64>,
                                                  rh::Divisor<rh::State64>, double, unsigned long long*);
template __global__ void step<rh::State32, rh::BFloat16>(int32_t*, int32_t*, uint32_t*, rh::BFloat16*, const rh::BFloat16*,
                                                         rh::Coefficients<rh::State32>, rh::Divisor<rh::State32>,
                                                         rh::Divisor<rh::State32>, double, unsigned long long*);
template __global__ void step<rh::State32, rh::Float16>(int32_t*, int32_t*, uint32_t*, rh::Float16*, const rh::Float16*,
                                                        rh::Coefficients<rh::State32>, rh::Divisor<rh::State32>,
                                                        rh::Divisor<rh::State32>, double, unsigned long long*);
