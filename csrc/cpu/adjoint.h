// The adjoint of one step on the CPU: the same blocks as the state's kernels, right behind them, while they are in cache.
// Included by kernels.cpp alone, and so compiled once per rule and instruction set; see lanes.h.
#pragma once

#include "../core/sums.h"
#include "kernels.h"
#include "state_lanes.h"

namespace rh {
namespace {

template <class Layout, class T>
struct AdjointWorker {
  using R = AdjointReal<T>;
  using Integer = typename Layout::Integer;
  using Real = typename Layout::Real;
  const Slice& slice;
  const AdjointSlice& adjoint;
  R constants[N];
  double wide[N];

  AdjointWorker(const Slice& of, const AdjointSlice& beside) : slice(of), adjoint(beside) {
    for (int j = 0; j < N; ++j) {
      constants[j] = static_cast<R>(of.numbers[j]);
      wide[j] = of.numbers[j];
    }
  }

  // A row of a state, or of the weights, as doubles. Squares that are 0 stay 0: their root has no share in the derivative.
  template <int k>
  RH_INLINE static void read_state(const void* integers, int64_t at, int count, double sigma, double* to) {
    const auto* from = static_cast<const typename StateLayout<Layout, k>::Integer*>(integers) + at;
    for (int j = 0; j < count; ++j) to[j] = static_cast<double>(from[j]) * sigma;
  }
  RH_INLINE void read_weight(int64_t at, int count, double* to) const {
    const Integer* from = static_cast<const Integer*>(slice.own.integers) + at;
    for (int j = 0; j < count; ++j) to[j] = static_cast<double>(from[j]) * slice.sigma_before;
  }

  struct Row {
    alignas(64) double states[K][kRow] = {}, weight[kRow] = {}, gradient[kRow] = {};
  };

  bool wanted(int sum) const { return adjoint.partials[sum] != nullptr; }
  R* aw(int64_t at) const { return static_cast<R*>(adjoint.weight) + at; }
  R* az(int k, int64_t at) const { return static_cast<R*>(adjoint.states[k]) + at; }

  RH_INLINE void numbers_at(int64_t at, R (&n)[N], double (&w)[N]) const {
    for (int j = 0; j < N; ++j) {
      const auto* own = static_cast<const Real*>(slice.elements[j]);
      n[j] = own ? static_cast<R>(own[at]) : constants[j];
      w[j] = own ? static_cast<double>(own[at]) : wide[j];
    }
  }

  // kSums: whether any inner product is wanted.
  template <bool kElements, bool kSums>
  RH_INLINE void before_row(int64_t at, int count, const Row& row, double (&sums)[kMaxSums][kRow]) const {
    R* by_weight = aw(at);
    if (adjoint.product) {
      const T* product = static_cast<const T*>(adjoint.product) + at;
#pragma GCC ivdep
      for (int j = 0; j < count; ++j) by_weight[j] = by_weight[j] + static_cast<R>(widen(product[j]));
    }
#pragma GCC ivdep
    for (int j = 0; j < count; ++j) {
      R z[K], n[N];
      double values[K], numbers[N], terms[kMaxSums] = {};
      for (int i = 0; i < N; ++i) {
        n[i] = constants[i];
        numbers[i] = wide[i];
      }
      if (kElements) numbers_at(at + j, n, numbers);
      for (int k = 0; k < K; ++k) {
        // In double: a rounded decay would be wrong the same way at every step.
        z[k] = static_cast<R>(adjoint.carries[k] * static_cast<double>(az(k, at)[j]));
        values[k] = row.states[k][j];
      }
      Rule::before(by_weight[j], z, values, n, numbers, terms);
      if (Rule::kDecaysWeight) {
        terms[kSumsBefore - 1] = static_cast<double>(by_weight[j]) * row.weight[j];
        by_weight[j] = static_cast<R>(adjoint.weight_decay * static_cast<double>(by_weight[j]));
      }
      for (int k = 0; k < K; ++k) az(k, at)[j] = z[k];
      for (int s = 0; kSums && s < kSumsBefore; ++s) sums[s][j] += terms[s];
    }
  }

  template <bool kElements, bool kSums>
  RH_INLINE void after_row(int64_t at, int count, const Row& row, double (&sums)[kMaxSums][kRow]) const {
    R* by_weight = aw(at);
    R* direction = adjoint.direction ? static_cast<R*>(adjoint.direction) + at : nullptr;
    alignas(64) R directions[kRow];
#pragma GCC ivdep
    for (int j = 0; j < count; ++j) {
      R z[K], n[N];
      double values[K], numbers[N], terms[kMaxSums] = {};
      for (int i = 0; i < N; ++i) {
        n[i] = constants[i];
        numbers[i] = wide[i];
      }
      if (kElements) numbers_at(at + j, n, numbers);
      for (int k = 0; k < K; ++k) {
        z[k] = az(k, at)[j];
        values[k] = row.states[k][j];
      }
      R by_own = by_weight[j];
      directions[j] = Rule::after(by_own, z, row.gradient[j], row.weight[j], values, n, numbers, terms);
      by_weight[j] = by_own;
      for (int s = 0; kSums && s < kSumsAfter; ++s) sums[s][j] += terms[s];
    }
    if (direction) memcpy(direction, directions, sizeof(R) * static_cast<size_t>(count));
  }

  bool reads(bool before, int k) const {
    if (before && Rule::kBeforeReadsStates) return true;
    const int sums = before ? int{Rule::kSumsBefore} : int{Rule::kSumsAfter};
    for (int s = 0; s < sums; ++s)
      if (wanted(s) && (before ? Rule::sum_before_reads_state(s, k) : Rule::sum_after_reads_state(s, k))) return true;
    return false;
  }

  void fill(bool before, int64_t at, int count, Row& row) const {
    for_states([&](auto k) {
      if (reads(before, k))
        read_state<k>(slice.states[k].integers, at, count, before ? slice.states[k].sigma : adjoint.sigma_before[k],
                      row.states[k]);
    });
    bool weight = before && Rule::kDecaysWeight && wanted(kSumsBefore - 1);
    bool gradient = !before && Rule::kAfterReadsGradient;
    weight |= gradient && Rule::looks_at_weight(slice);
    for (int s = 0; !before && s < Rule::kSumsAfter; ++s) {
      weight |= wanted(s) && Rule::sum_after_reads_weight(s);
      gradient |= wanted(s) && Rule::sum_after_reads_gradient(s);
    }
    if (weight) read_weight(at, count, row.weight);
    if (!gradient) return;
    const T* g = static_cast<const T*>(slice.gradient) + at;
    for (int j = 0; j < count; ++j) row.gradient[j] = static_cast<double>(widen(g[j]));
  }

  template <bool kElements, bool kSums>
  void block(bool before, int64_t index) const {
    alignas(64) double sums[kMaxSums][kRow] = {};
    Row row;
    const int64_t begin = index * kBlockSize, end = begin + kBlockSize < slice.size ? begin + kBlockSize : slice.size;
    for (int64_t at = begin; at < end; at += kRow) {
      const int count = static_cast<int>(end - at < kRow ? end - at : kRow);
      fill(before, at, count, row);
      if (before)
        before_row<kElements, kSums>(at, count, row, sums);
      else
        after_row<kElements, kSums>(at, count, row, sums);
    }
    for (int s = 0; s < kMaxSums; ++s)
      if (adjoint.partials[s]) adjoint.partials[s][index] = sum_of_lanes(sums[s]);
  }

  bool wants_sums() const {
    bool any = false;
    for (const double* partials : adjoint.partials) any |= partials != nullptr;
    return any;
  }

  template <bool kElements, bool kSums>
  void blocks(bool before, int64_t first, int64_t last) const {
    for (int64_t index = first; index < last; ++index) {
      // A tensor that took no part, or a block that was refused, stays as it is, and so does its adjoint.
      if (slice.active && (before || !slice.skipped || !slice.skipped[index])) {
        block<kElements, kSums>(before, index);
      } else {
        for (double* partials : adjoint.partials)
          if (partials) partials[index] = 0.0;
      }
    }
  }

  void run(Phase phase, int64_t first, int64_t last) const {
    const bool before = phase == Phase::undo_weights, sums = wants_sums();
    if (!before && !sums && !adjoint.direction && !Rule::decays(slice)) return;
    bool elementwise = false;
    for (const void* own : slice.elements) elementwise |= own != nullptr;
    if (elementwise)
      sums ? blocks<true, true>(before, first, last) : blocks<true, false>(before, first, last);
    else
      sums ? blocks<false, true>(before, first, last) : blocks<false, false>(before, first, last);
  }
};

}  // namespace
}  // namespace rh
