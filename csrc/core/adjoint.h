// The adjoint of one step of SGD on one weight, in two halves beside the two phases of undoing it, and the one order in
// which the inner products of a tensor are added.
//
//     v' = mu*v + share*(g + wd*w)      share = 1 - dampening
//     w' = w - lr*v'
//
// From aw, av, the gradients by w' and v', to those by w and v:
//
//     with X, before the gradient is there    d_lr = -<aw, v'>      av = av - lr*aw
//     with V, when it is                      u = share*av          product: the second derivatives times u
//                                             d_wd = <u, w>         aw = (aw + product) + wd*u
//                                             d_mu = <av, v>        av = mu*av
//                                             d_share = <av, g + wd*w>
//
// aw and av are vectors of Real, laid out as X: double for weights of double, float for all others. Each line above is one IEEE
// operation after the other in Real; av - lr*aw and the addition of wd*u are one each, a fused multiply-add: over thousands of
// steps the roundings of the products show. Inner products are of doubles: X, V and g as they are, each term rounded once.
//
// Order of the sums. Of a block: each lane adds its rows downwards, beginning with +0; then neighbouring lanes are added, then
// neighbouring pairs, and so on, lanes that are not there counting as +0. Of a tensor: kSumLanes sums of every kSumLanes-th
// block, then halves. So the number of threads, the instruction set and the device do not matter.
#pragma once

#include <type_traits>

#include "sgd.h"

namespace rh {

// Real, by the type of the weights. A bucket with an adjoint has weights of double only, or none.
template <class T>
using AdjointReal = std::conditional_t<sizeof(T) == sizeof(double), double, float>;

constexpr int kSumLanes = 512;  // enough for the threads of one CUDA block to hide memory; a power of two

// The sums of the second half; the first has one.
enum InnerProduct { kByDecay, kByMomentum, kByShare, kInnerProducts };

// What a bucket's tensors share in their adjoint.
struct Adjoint {
  void* weights;     // aw
  void* velocities;  // av
  double mu;
  double* sums[kInnerProducts];      // one per tensor; null: not wanted
  double* partials[kInnerProducts];  // one per block of the bucket
};

// One tensor's.
struct AdjointSlice {
  const void* product;  // as the gradient; null: zero
  double share, decay;
};

template <class State>
RH_INLINE double weight_number(typename State::Integer x) {
  return static_cast<double>(x) * (1.0 / (int64_t{1} << State::weight_fraction_bits));
}
template <class State>
RH_INLINE double velocity_number(typename State::Integer v) {
  return static_cast<double>(v) * (1.0 / (int64_t{1} << State::velocity_fraction_bits));
}

// lr, from weight quanta per quantum of velocity: a power of two apart.
template <class State, class Real>
RH_INLINE Real rate_number(typename State::Real quanta) {
  constexpr int bits = State::weight_fraction_bits - State::velocity_fraction_bits;
  return static_cast<Real>(quanta * static_cast<typename State::Real>(1.0 / (int64_t{1} << bits)));
}

template <class Real>
RH_INLINE Real through_weight(Real av, Real aw, Real lr) {
  return multiply_add(-lr, aw, av);
}

// One tensor's numbers, and one weight's second half.
template <class Real>
struct ThroughVelocity {
  Real share, decay, mu;
  double wide_decay;
  RH_INLINE ThroughVelocity(const Adjoint& adjoint, const AdjointSlice& own)
      : share(static_cast<Real>(own.share)),
        decay(static_cast<Real>(own.decay)),
        mu(static_cast<Real>(adjoint.mu)),
        wide_decay(own.decay) {}

  RH_INLINE Real direction(Real av) const { return share * av; }
  RH_INLINE double total(double gradient, double w) const { return gradient + wide_decay * w; }
  // A decay of zero adds nothing, whatever u is.
  RH_INLINE Real decayed(Real aw, Real av) const { return decay != 0 ? multiply_add(decay, direction(av), aw) : aw; }
  RH_INLINE Real velocity(Real av) const { return mu * av; }
};

// Of one block, a lane each; overwritten.
RH_INLINE double sum_of_lanes(double (&lanes)[kLanesPerBlock]) {
  for (int left = kLanesPerBlock / 2; left > 0; left /= 2)
    for (int i = 0; i < left; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  return lanes[0];
}

// Of one tensor.
RH_INLINE double sum_of_blocks(const double* partials, int64_t count) {
  double lanes[kSumLanes] = {};
  for (int64_t first = 0; first < count; first += kSumLanes) {
    const int here = count - first < kSumLanes ? static_cast<int>(count - first) : kSumLanes;
    for (int i = 0; i < here; ++i) lanes[i] += partials[first + i];
  }
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace rh
