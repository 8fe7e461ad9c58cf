// SGD with momentum.
//
//     v = momentum * v + share * (g + decay * w)        share = 1 - dampening
//     w = w - lr * v
//
// The momentum is a lazy scale's business. What stands here are the two functions of the rule in Python, rules/sgd.py, in the
// same order of operations, over one or several lanes.
#pragma once

#include "../core/slices.h"

namespace rh {

struct SGD {
  static constexpr const char* kName = "sgd";
  static constexpr int kStates = 1;
  static constexpr int kPower[] = {1};
  static constexpr bool kDecaysWeight = false;
  enum Number { kShare, kDecay, kLr, kNumbers };

  // Whether increments need the weight at all.
  static bool looks_at_weight(const Slice& slice) { return slice.numbers[kDecay] != 0 || slice.elements[kDecay]; }

  template <int state, bool kWeight, class Real>
  RH_INLINE static Real increment(Real g, Real w, const Real*, const Real* n) {
    return kWeight ? n[kShare] * (g + n[kDecay] * w) : n[kShare] * g;
  }
  template <class Real>
  RH_INLINE static Real update(const Real* z, const Real* n) {
    return n[kLr] * z[0];
  }

  // The adjoint of a step, from aw and av, the gradients by w' and v', to those by w and v, in two halves:
  //
  //     before the gradient is there   d_lr = -<aw, v'>;  av = av - lr * aw
  //     when it is                     u = share * av, the direction that the second derivatives are multiplied by
  //                                    d_decay = <u, w>;  d_momentum = <av, v>;  d_share = <av, g + decay * w>;  aw = aw + decay
  //                                    * u
  //
  // aw gets the product, and av the momentum, when the step before is undone. Each line is one operation of Real after the other;
  // av - lr * aw and aw + decay * u are one each, a fused multiply-add: over thousands of steps the roundings of the products
  // show. Inner products are of doubles, each term rounded once.
  enum SumBefore { kByLr, kSumsBefore };
  enum SumAfter { kByDecay, kByMomentum, kByShare, kSumsAfter };
  // What the halves read whatever sums are wanted.
  static constexpr bool kBeforeReadsStates = false;
  static constexpr bool kAfterReadsGradient = false;
  static constexpr bool sum_before_reads_state(int, int) { return true; }
  static constexpr bool sum_after_reads_weight(int sum) { return sum != kByMomentum; }
  static constexpr bool sum_after_reads_state(int sum, int) { return sum == kByMomentum; }
  static constexpr bool sum_after_reads_gradient(int sum) { return sum == kByShare; }
  // Whether the second half changes aw at all.
  static bool decays(const Slice& slice) { return looks_at_weight(slice); }

  template <class R>
  RH_INLINE static void before(R aw, R* az, const double* z, const R* n, const double*, double* terms) {
    terms[kByLr] = static_cast<double>(aw) * z[0];
    az[0] = multiply_add(-n[kLr], aw, az[0]);
  }
  // wide: the numbers in double.
  template <class R>
  RH_INLINE static R after(R& aw, const R* az, double g, double w, const double* z, const R* n, const double* wide,
                           double* terms) {
    const R u = n[kShare] * az[0];
    terms[kByDecay] = static_cast<double>(u) * w;
    terms[kByMomentum] = static_cast<double>(az[0]) * z[0];
    terms[kByShare] = static_cast<double>(az[0]) * (g + wide[kDecay] * w);
    aw = n[kDecay] != 0 ? multiply_add(n[kDecay], u, aw) : aw;
    return u;
  }
};

using Rule = SGD;

}  // namespace rh
