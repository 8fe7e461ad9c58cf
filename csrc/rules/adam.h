// Adam and AdamW.
//
//     d = g + decay * w                                            decay 0: AdamW, whose decay is one of the weights' scale
//     m = beta1 * m + share_m * d                                  share_m = 1 - beta1
//     s = beta2 * s + share_s * d^2                                share_s = 1 - beta2
//     w = w - step * m / (sqrt(s + root_eps) * scale + eps)        step = lr / (1 - beta1^t), scale = (1 - beta2^t)^(-1/2)
//
// The betas are lazy scales' business, and the bias corrections the host's. What stands here are the two functions of the rule in
// Python, rules/adam.py, in the same order of operations, over one or several lanes.
#pragma once

#include "../core/slices.h"

namespace rh {

struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr int kStates = 2;
  static constexpr int kPower[] = {1, 2};
  static constexpr bool kDecaysWeight = true;
  enum Number { kShareM, kShareS, kDecay, kStep, kScale, kEps, kRootEps, kNumbers };

  static bool looks_at_weight(const Slice& slice) { return slice.numbers[kDecay] != 0 || slice.elements[kDecay]; }

  template <int state, bool kWeight, class Real>
  RH_INLINE static Real increment(Real g, Real w, const Real*, const Real* n) {
    const Real d = kWeight ? g + n[kDecay] * w : g;
    return state == 0 ? n[kShareM] * d : n[kShareS] * (d * d);
  }
  template <class Real>
  RH_INLINE static Real update(const Real* z, const Real* n) {
    return n[kStep] * z[0] / (square_root(z[1] + n[kRootEps]) * n[kScale] + n[kEps]);
  }

  // The adjoint of a step, in two halves, from aw, am and as, the gradients by w', m' and s'. With r = sqrt(s' + root_eps), D = r
  // * scale + eps and u = step * m' / D, which is subtracted from the weight:
  //
  //     before the gradient is there   d_step = -<aw, m' / D>;  d_scale = <aw, u * r / D>;  d_eps = <aw, u / D>
  //                                    d_root_eps = <aw, u * scale / (2 r D)>
  //                                    am = am - aw * step / D;  as = as + aw * u * scale / (2 r D)          0 where r is
  //     when it is                     v = share_m * am + 2 * share_s * d * as, the direction
  //                                    d_share_m = <am, d>;  d_share_s = <as, d^2>;  d_decay = <v, w>
  //                                    d_beta1 = <am, m>;  d_beta2 = <as, s>;  aw = aw + decay * v
  //
  // The factors are of doubles, rounded once; each vector changes by one fused multiply-add.
  enum SumBefore { kByStep, kByScale, kByEps, kByRootEps, kSumsBefore };
  enum SumAfter { kByShareM, kByShareS, kByDecay, kByBeta1, kByBeta2, kSumsAfter };
  // What the halves read whatever sums are wanted.
  static constexpr bool kBeforeReadsStates = true;
  static constexpr bool kAfterReadsGradient = true;
  static constexpr bool sum_before_reads_state(int, int) { return true; }
  static constexpr bool sum_after_reads_weight(int sum) { return sum == kByDecay; }
  static constexpr bool sum_after_reads_state(int sum, int k) { return sum == kByBeta1 + k; }
  static constexpr bool sum_after_reads_gradient(int) { return true; }
  static bool decays(const Slice& slice) { return looks_at_weight(slice); }

  template <class R>
  RH_INLINE static void before(R aw, R* az, const double* z, const R*, const double* wide, double* terms) {
    const double r = square_root(z[1] + wide[kRootEps]);
    const double inverse = 1.0 / (r * wide[kScale] + wide[kEps]);
    const double by_m = wide[kStep] * inverse, by_denominator = by_m * z[0] * inverse;
    const double by_s = r > 0 ? by_denominator * (0.5 * wide[kScale]) / r : 0.0;
    const double a = static_cast<double>(aw);
    terms[kByStep] = -a * (z[0] * inverse);
    terms[kByScale] = a * (by_denominator * r);
    terms[kByEps] = a * by_denominator;
    terms[kByRootEps] = a * by_s;
    az[0] = multiply_add(static_cast<R>(-by_m), aw, az[0]);
    az[1] = multiply_add(static_cast<R>(by_s), aw, az[1]);
  }
  template <class R>
  RH_INLINE static R after(R& aw, const R* az, double g, double w, const double* z, const R* n, const double* wide,
                           double* terms) {
    const double am = static_cast<double>(az[0]), as = static_cast<double>(az[1]), d = g + wide[kDecay] * w;
    const double v = wide[kShareM] * am + 2.0 * wide[kShareS] * d * as;
    terms[kByShareM] = am * d;
    terms[kByShareS] = as * (d * d);
    terms[kByDecay] = v * w;
    terms[kByBeta1] = am * z[0];
    terms[kByBeta2] = as * z[1];
    const R direction = static_cast<R>(v);
    aw = n[kDecay] != 0 ? multiply_add(n[kDecay], direction, aw) : aw;
    return direction;
  }
};

using Rule = Adam;

}  // namespace rh
