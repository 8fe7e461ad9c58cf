// The adjoint of one step on the CPU: the same blocks as the state's kernels, right behind them, while they are in cache.
// Included by kernels.cpp alone, and so compiled once per instruction set; see lanes.h.
#pragma once

#include "../core/adjoint.h"
#include "lanes.h"

namespace rh {
namespace {

// One slice.
template <class State, class T>
struct Through {
  using R = AdjointReal<T>;
  using Integer = typename State::Integer;
  static constexpr int J = kLanesPerBlock;

  const Bucket& bucket;
  const Slice& slice;
  const Adjoint& adjoint;
  const AdjointSlice& own;

  struct Block {
    int lanes, rows;
    int64_t begin, size;  // first weight in the tensor, and how many
    int count(int k) const { return static_cast<int>(size - k * lanes < lanes ? size - k * lanes : lanes); }
  };

  Block block(int64_t index) const {
    const int64_t begin = index * kBlockSize, rest = slice.size - begin, size = rest < kBlockSize ? rest : kBlockSize;
    const int lanes = lanes_in_block(slice.size, begin);
    return {lanes, static_cast<int>((size + lanes - 1) / lanes), begin, size};
  }

  const Integer* x(int64_t i) const { return static_cast<const Integer*>(bucket.weights) + slice.state_offset + i; }
  const Integer* v(int64_t i) const { return static_cast<const Integer*>(bucket.velocities) + slice.state_offset + i; }
  R* aw(int64_t i) const { return static_cast<R*>(adjoint.weights) + slice.state_offset + i; }
  R* av(int64_t i) const { return static_cast<R*>(adjoint.velocities) + slice.state_offset + i; }

  // A row of the state as doubles: `fraction_bits` are of weights or of velocities.
  static RH_INLINE void read(const Integer* row, int count, int fraction_bits, double* to) {
    const double quantum = 1.0 / static_cast<double>(int64_t{1} << fraction_bits);
    int j = 0;
    for (; j + Wide<State>::width <= count; j += Wide<State>::width)
      Wide<State>::write(to + j, Wide<State>::load(row + j), quantum);
    for (; j < count; ++j) Single<State>::write(to + j, row[j], quantum);
  }

  template <bool kFull>
  double weights(const Block& b, bool summed) const {
    using Rate = typename State::Real;
    alignas(64) double sum[J] = {}, number[J];
    const R lr = rate_number<State, R>(static_cast<Rate>(slice.lr));
    for (int k = 0; k < (kFull ? kWeightsPerLane : b.rows); ++k) {
      const int count = kFull ? J : b.count(k);
      const int64_t at = b.begin + k * (kFull ? J : b.lanes);
      const R* by_weight = aw(at);
      R* by_velocity = av(at);
      if (summed) {
        read(v(at), count, State::velocity_fraction_bits, number);
        for (int j = 0; j < count; ++j) sum[j] += static_cast<double>(by_weight[j]) * number[j];
      }
      if (slice.lr_elements) {
        const Rate* rates = static_cast<const Rate*>(slice.lr_elements) + at;
#pragma GCC ivdep
        for (int j = 0; j < count; ++j)
          by_velocity[j] = through_weight(by_velocity[j], by_weight[j], rate_number<State, R>(rates[j]));
      } else {
#pragma GCC ivdep
        for (int j = 0; j < count; ++j) by_velocity[j] = through_weight(by_velocity[j], by_weight[j], lr);
      }
    }
    return summed ? sum_of_lanes(sum) : 0.0;
  }

  template <bool kFull>
  void velocity(const Block& b, double (&found)[kInnerProducts]) const {
    alignas(64) double sum[kInnerProducts][J] = {}, w[J], number[J];
    const ThroughVelocity<R> through(adjoint, own);
    const bool by_decay = adjoint.sums[kByDecay], by_momentum = adjoint.sums[kByMomentum], by_share = adjoint.sums[kByShare];
    for (int k = 0; k < (kFull ? kWeightsPerLane : b.rows); ++k) {
      const int count = kFull ? J : b.count(k);
      const int64_t at = b.begin + k * (kFull ? J : b.lanes);
      R* by_weight = aw(at);
      R* by_velocity = av(at);
      if (by_decay || by_share) read(x(at), count, State::weight_fraction_bits, w);
      if (by_decay)
        for (int j = 0; j < count; ++j) sum[kByDecay][j] += static_cast<double>(through.direction(by_velocity[j])) * w[j];
      if (by_momentum) {
        read(v(at), count, State::velocity_fraction_bits, number);
        for (int j = 0; j < count; ++j) sum[kByMomentum][j] += static_cast<double>(by_velocity[j]) * number[j];
      }
      if (by_share) {
        const T* gradient = static_cast<const T*>(slice.gradient) + at;
        for (int j = 0; j < count; ++j)
          sum[kByShare][j] += static_cast<double>(by_velocity[j]) * through.total(static_cast<double>(widen(gradient[j])), w[j]);
      }
      if (own.product) {
        const T* product = static_cast<const T*>(own.product) + at;
#pragma GCC ivdep
        for (int j = 0; j < count; ++j)
          by_weight[j] = through.decayed(by_weight[j] + static_cast<R>(widen(product[j])), by_velocity[j]);
      } else if (through.decay != 0) {
#pragma GCC ivdep
        for (int j = 0; j < count; ++j) by_weight[j] = through.decayed(by_weight[j], by_velocity[j]);
      }
      for (int j = 0; j < count; ++j) by_velocity[j] = through.velocity(by_velocity[j]);
    }
    for (int i = 0; i < kInnerProducts; ++i) found[i] = adjoint.sums[i] ? sum_of_lanes(sum[i]) : 0.0;
  }

  void run(Phase phase, int64_t block_offset, int64_t first, int64_t last) const {
    for (int64_t index = first; index < last; ++index) {
      const Block b = block(index);
      const bool full = b.size == kBlockSize;
      double found[kInnerProducts] = {};
      if (!slice.gradient) {
        // The step left this tensor as it was: its adjoint, too.
      } else if (phase == Phase::undo_weights) {
        const bool summed = adjoint.sums[0];
        found[0] = full ? weights<true>(b, summed) : weights<false>(b, summed);
      } else if (!bucket.skipped[block_offset + index]) {
        full ? velocity<true>(b, found) : velocity<false>(b, found);
      }
      for (int i = 0; i < kInnerProducts; ++i)
        if (adjoint.sums[i]) adjoint.partials[i][block_offset + index] = found[i];
    }
  }
};

template <class State>
void through(Phase phase, const Bucket& bucket, const Slice& slice, const Adjoint& adjoint, const AdjointSlice& own,
             int64_t block_offset, int64_t first, int64_t last) {
  switch (slice.type) {
    case ScalarType::float32:
      return Through<State, float>{bucket, slice, adjoint, own}.run(phase, block_offset, first, last);
    case ScalarType::float64:
      return Through<State, double>{bucket, slice, adjoint, own}.run(phase, block_offset, first, last);
    case ScalarType::bfloat16:
      return Through<State, BFloat16>{bucket, slice, adjoint, own}.run(phase, block_offset, first, last);
    default:
      return Through<State, Float16>{bucket, slice, adjoint, own}.run(phase, block_offset, first, last);
  }
}

}  // namespace
}  // namespace rh
