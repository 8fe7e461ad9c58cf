// Compiled once per instruction set with RH_KERNELS naming the table it defines (see setup.py).
#include "kernels.h"

#include <type_traits>

#include "../core/hash.h"
#include "../core/sgd.h"
#include "adjoint.h"
#include "lanes.h"
#include "rows.h"

namespace rh {
namespace {

constexpr int J = kLanesPerBlock;

// One slice under one phase. kFull: the block has all lanes and rows, so every loop has a constant length.
template <class State, class T>
struct Worker {
  using Integer = typename State::Integer;
  using Accumulator = typename State::Accumulator;
  using Real = typename State::Real;

  const Bucket& bucket;
  const Slice& slice;
  bool hash, stream;
  // Loops take a copy: what stands in memory could change with every store, as far as a compiler knows.
  struct Numbers {
    Coefficients<State> coefficients;
    Divisor<State> n, d;
    double quantum;
  };
  const Numbers numbers;
  const Contracted<State> contracted;
  Outcome outcome;

  Worker(const Bucket& b, const Slice& s, bool with_hash, bool with_stream)
      : bucket(b),
        slice(s),
        hash(with_hash),
        stream(with_stream),
        numbers{{static_cast<Real>(s.gradient_coefficient), static_cast<Real>(s.decay_coefficient), static_cast<Real>(s.lr)},
                Divisor<State>(b.n),
                Divisor<State>(b.d),
                1.0 / static_cast<double>(int64_t{1} << State::weight_fraction_bits)},
        contracted(b.n, b.d) {}

  struct Block {
    int lanes;
    Integer* x;
    Integer* v;
    Accumulator* s;
    const T* gradient;
    const Real* lr;
    T* weight;
    int64_t lane;      // first lane in the bucket
    int64_t position;  // first element in the bucket's state
    int64_t size;      // weights in the block
    int rows() const { return static_cast<int>((size + lanes - 1) / lanes); }
    int row_count(int k) const {
      return static_cast<int>(size - static_cast<int64_t>(k) * lanes < lanes ? size - static_cast<int64_t>(k) * lanes : lanes);
    }
  };

  Block block(int64_t index) const {
    int64_t begin = index * kBlockSize, rest = slice.size - begin;
    int64_t lane = slice.lane_offset + index * kLanesPerBlock, position = slice.state_offset + begin;
    return {lanes_in_block(slice.size, begin),
            static_cast<Integer*>(bucket.weights) + position,
            static_cast<Integer*>(bucket.velocities) + position,
            static_cast<Accumulator*>(bucket.accumulators) + lane,
            slice.gradient ? static_cast<const T*>(slice.gradient) + begin : nullptr,
            slice.lr_elements ? static_cast<const Real*>(slice.lr_elements) + begin : nullptr,
            static_cast<T*>(slice.weight) + begin,
            lane,
            position,
            rest < kBlockSize ? rest : kBlockSize};
  }

  void* plane(int k, int64_t lane) const { return static_cast<char*>(bucket.planes[k]) + lane * bucket.spill_bits[k] / 8; }

  template <class L>
  using ChecksOf = Checks<typename L::Integer>;
  template <class L>
  static RH_INLINE ChecksOf<L> no_complaint() {
    return {L::zero(), L::zero(), L::zero(), L::zero()};
  }
  template <class L>
  RH_INLINE void report(const ChecksOf<L>& checks) {
    outcome.flags |= flags_of<State>(Checks<Integer>{L::any_bit(checks.gradient), L::any_bit(checks.velocity),
                                                     L::any_bit(checks.change), L::any_bit(checks.weight)});
  }

  RH_INLINE void finish(const Block& b, uint64_t sum, int which) {
    if (hash) outcome.hash += hash_finish(sum, b.position, which);
  }

  template <class L>
  RH_INLINE void step_lanes(Integer* x, Integer* v, Accumulator* s, const T* gradient, const Real* lr, T* row, const Numbers& of,
                            ChecksOf<L>& checks) {
    auto xj = L::load(x);
    auto vj = L::load(v);
    auto sj = L::load(s);
    step_velocity<State>(xj, vj, sj, L::read(gradient), of.coefficients, of.n, of.d, checks);
    auto change = lr ? weight_change<State>(vj, L::load(lr)) : weight_change<State>(vj, of.coefficients.lr);
    step_weight<State>(xj, change, checks);
    L::store(s, sj);
    L::store(v, vj);
    L::store(x, xj);
    L::write(row, xj, of.quantum);
  }

  template <bool kFull>
  RH_INLINE void step(const Block& b) {
    const int lanes = kFull ? J : b.lanes;
    const Numbers of = numbers;
    auto wide = no_complaint<Wide<State>>();
    auto single = no_complaint<Single<State>>();
    uint64_t x_sum = 0, v_sum = 0;
    alignas(64) T row[J];
    const int rows = kFull ? kWeightsPerLane : b.rows();
    for (int k = 0; k < kWeightsPerLane; ++k) {
      if (bucket.spill_bits[k]) spill(b.s, lanes, bucket.spill_bits[k], plane(k, b.lane));
      if (k >= rows) continue;
      const int count = kFull ? J : b.row_count(k);
      const Real* lr = b.lr ? b.lr + k * lanes : nullptr;
      Integer* x = b.x + k * lanes;
      Integer* v = b.v + k * lanes;
      const T* gradient = b.gradient + k * lanes;
      if (kFull) {
        prefetch_next(x);
        prefetch_next(v);
        prefetch_next(gradient);
      }
      int j = 0;
      for (; j + Wide<State>::width <= count; j += Wide<State>::width)
        step_lanes<Wide<State>>(x + j, v + j, b.s + j, gradient + j, lr ? lr + j : lr, row + j, of, wide);
      for (; j < count; ++j)
        step_lanes<Single<State>>(x + j, v + j, b.s + j, gradient + j, lr ? lr + j : lr, row + j, of, single);
      write_row(b.weight + k * lanes, row, count * static_cast<int64_t>(sizeof(T)), stream);
      if (hash) {
        x_sum += hash_row(x, count, k * lanes);
        v_sum += hash_row(v, count, k * lanes);
      }
    }
    report<Wide<State>>(wide);
    report<Single<State>>(single);
    finish(b, x_sum, 0);
    finish(b, v_sum, 1);
  }

  // A tensor without a gradient in this step: only its lanes' accumulators keep pace with the others.
  void idle(const Block& b) {
    for (int k = 0; k < kWeightsPerLane; ++k)
      if (bucket.spill_bits[k]) spill(b.s, b.lanes, bucket.spill_bits[k], plane(k, b.lane));
    hash_at_rest(b, true, true);
  }

  void hash_at_rest(const Block& b, bool weights, bool velocities) {
    if (!hash) return;
    uint64_t x_sum = 0, v_sum = 0;
    for (int k = 0; k < b.rows(); ++k) {
      if (weights) x_sum += hash_row(b.x + k * b.lanes, b.row_count(k), k * b.lanes);
      if (velocities) v_sum += hash_row(b.v + k * b.lanes, b.row_count(k), k * b.lanes);
    }
    if (weights) finish(b, x_sum, 0);
    if (velocities) finish(b, v_sum, 1);
  }

  template <class L, bool kBack>
  RH_INLINE void move_lanes(Integer* x, const Integer* v, const Real* lr, T* row, const Numbers& of) {
    auto vj = L::load(v);
    auto change = lr ? weight_change<State>(vj, L::load(lr)) : weight_change<State>(vj, of.coefficients.lr);
    auto xj = kBack ? wrapping_add(L::load(x), change) : wrapping_subtract(L::load(x), change);
    L::store(x, xj);
    L::write(row, xj, of.quantum);
  }

  template <bool kFull, bool kBack>
  RH_INLINE void move_weights(const Block& b) {
    const int lanes = kFull ? J : b.lanes;
    const int rows = kFull ? kWeightsPerLane : b.rows();
    const Numbers of = numbers;
    uint64_t x_sum = 0;
    alignas(64) T row[J];
    for (int k = 0; k < rows; ++k) {
      const int count = kFull ? J : b.row_count(k);
      const Real* lr = b.lr ? b.lr + k * lanes : nullptr;
      Integer* x = b.x + k * lanes;
      const Integer* v = b.v + k * lanes;
      if (kFull) {
        prefetch_next(x);
        prefetch_next(v);
      }
      int j = 0;
      for (; j + Wide<State>::width <= count; j += Wide<State>::width)
        move_lanes<Wide<State>, kBack>(x + j, v + j, lr ? lr + j : lr, row + j, of);
      for (; j < count; ++j) move_lanes<Single<State>, kBack>(x + j, v + j, lr ? lr + j : lr, row + j, of);
      write_row(b.weight + k * lanes, row, count * static_cast<int64_t>(sizeof(T)), stream);
      if (hash) x_sum += hash_row(x, count, k * lanes);
    }
    finish(b, x_sum, 0);
  }

  template <class L, bool kDecay>
  RH_INLINE void undo_lanes(const Integer* x, const Integer* from, Integer* v, Accumulator* s, const T* gradient,
                            const Numbers& of, ChecksOf<L>& checks, typename L::Integer& furthest) {
    auto sj = L::load(s);
    auto vj = L::load(from);
    auto place = L::zero();
    rh::undo_velocity<kDecay, State>(kDecay ? L::load(x) : L::zero(), vj, sj, place, L::read(gradient), of.coefficients, of.n,
                                     of.d, contracted, checks);
    furthest = L::further(furthest, place);
    L::store(s, sj);
    L::store(v, vj);
  }

  // Returns false, with nothing changed, if the gradient cannot have produced the velocity.
  template <bool kFull, bool kDecay>
  RH_INLINE bool undo_velocity(const Block& b) {
    const int lanes = kFull ? J : b.lanes;
    const int rows = kFull ? kWeightsPerLane : b.rows();
    const Numbers of = numbers;
    alignas(64) Integer v[kBlockSize];
    alignas(64) Accumulator s[J];
    auto wide = no_complaint<Wide<State>>();
    auto single = no_complaint<Single<State>>();
    auto wide_furthest = Wide<State>::zero();
    auto single_furthest = Single<State>::zero();
    memcpy(s, b.s, sizeof(Accumulator) * static_cast<size_t>(lanes));
    for (int k = kWeightsPerLane - 1; k >= 0; --k) {
      if (k < rows) {
        const int count = kFull ? J : b.row_count(k);
        const Integer* x = b.x + k * lanes;
        const Integer* from = b.v + k * lanes;
        const T* gradient = b.gradient + k * lanes;
        if (kFull) {
          if (kDecay) prefetch_next(x);
          prefetch_next(from);
          prefetch_next(gradient);
        }
        int j = 0;
        for (; j + Wide<State>::width <= count; j += Wide<State>::width)
          undo_lanes<Wide<State>, kDecay>(x + j, from + j, v + k * lanes + j, s + j, gradient + j, of, wide, wide_furthest);
        for (; j < count; ++j)
          undo_lanes<Single<State>, kDecay>(x + j, from + j, v + k * lanes + j, s + j, gradient + j, of, single, single_furthest);
      }
      if (bucket.spill_bits[k]) refill(s, lanes, bucket.spill_bits[k], plane(k, b.lane));
    }
    report<Wide<State>>(wide);
    report<Single<State>>(single);
    if (Wide<State>::greatest(wide_furthest) >= contracted.count ||
        Single<State>::greatest(single_furthest) >= contracted.count) {
      outcome.flags |= kForeignGradient;
      return false;
    }
    memcpy(b.v, v, sizeof(Integer) * static_cast<size_t>(b.size));
    memcpy(b.s, s, sizeof(Accumulator) * static_cast<size_t>(lanes));
    hash_at_rest(b, false, true);
    return true;
  }

  // Calls f with std::true_type for a full block, where there is that form.
  template <class F>
  static RH_INLINE void in_form(bool full, F f) {
    if constexpr (std::is_same<T, float>::value)
      if (full) return f(std::true_type{});
    f(std::false_type{});
  }

  void run(Phase phase, int64_t block_offset, int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      Block b = block(index);
      // Loops of constant length are worth their compile time for the usual type only.
      const bool full = std::is_same<T, float>::value && b.size == kBlockSize;
      uint8_t* skipped = bucket.skipped ? bucket.skipped + block_offset + index : nullptr;
      if (!b.gradient) {
        if (phase == Phase::step) idle(b);
        if (phase == Phase::undo_weights || phase == Phase::redo_weights) hash_at_rest(b, true, false);
        if (phase == Phase::undo_velocity) {
          for (int k = kWeightsPerLane - 1; k >= 0; --k)
            if (bucket.spill_bits[k]) refill(b.s, b.lanes, bucket.spill_bits[k], plane(k, b.lane));
          hash_at_rest(b, false, true);
        }
      } else if (phase == Phase::undo_weights) {
        in_form(full, [&](auto form) { move_weights<form.value, true>(b); });
      } else if (phase == Phase::redo_weights || (phase == Phase::step && skipped && *skipped)) {
        in_form(full, [&](auto form) { move_weights<form.value, false>(b); });
      } else if (phase == Phase::step) {
        in_form(full, [&](auto form) { step<form.value>(b); });
      } else {
        bool done;
        if (full && numbers.coefficients.decay == 0)
          in_form(full, [&](auto form) { done = undo_velocity<form.value, !form.value>(b); });
        else
          in_form(full, [&](auto form) { done = undo_velocity<form.value, true>(b); });
        if (skipped) *skipped = !done;
      }
    }
#if defined(__x86_64__)
    if (stream) _mm_sfence();
#endif
  }
};

template <class State, class T>
Outcome run_type(Phase phase, const Bucket& bucket, const Slice& slice, int64_t block_offset, int64_t first, int64_t last,
                 bool hash, bool stream) {
  Worker<State, T> worker(bucket, slice, hash, stream);
  worker.run(phase, block_offset, first, last);
  return worker.outcome;
}

template <class State>
Outcome run(Phase phase, const Bucket& bucket, const Slice& slice, int64_t block_offset, int64_t first, int64_t last, bool hash,
            bool stream) {
  switch (slice.type) {
    case ScalarType::float32:
      return run_type<State, float>(phase, bucket, slice, block_offset, first, last, hash, stream);
    case ScalarType::float64:
      return run_type<State, double>(phase, bucket, slice, block_offset, first, last, hash, stream);
    case ScalarType::bfloat16:
      return run_type<State, BFloat16>(phase, bucket, slice, block_offset, first, last, hash, stream);
    default:
      return run_type<State, Float16>(phase, bucket, slice, block_offset, first, last, hash, stream);
  }
}

}  // namespace

#define RH_TEXT_OF(x) #x
#define RH_TEXT(x) RH_TEXT_OF(x)
extern const Kernels RH_KERNELS;
const Kernels RH_KERNELS = {RH_TEXT(RH_KERNELS), run<State64>, run<State32>, through<State64>, through<State32>};

}  // namespace rh
