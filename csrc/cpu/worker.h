// One tensor's blocks under one phase, a chunk of kChunk weights at a time. Included by kernels.cpp alone, and so compiled once
// per rule and instruction set; see lanes.h.
#pragma once

#include "../core/slices.h"
#include "kernels.h"
#include "state_lanes.h"

namespace rh {
namespace {

template <class Layout, class T>
struct Worker {
  using P = Pack<Layout>;
  using Integer = typename Layout::Integer;
  using Real = typename Layout::Real;
  using Integers = typename P::Integer;
  using Reals = typename P::Real;
  static constexpr int W = P::width, kRegisters = kChunk / W;
  // Two states of different widths beside weights are more streams than hardware foresees: 4 % of a step. With fewer, or all
  // alike, it costs as much as it gains.
  static constexpr bool kPrefetches = Layout::bits == 32 && K > 1;
  static constexpr int kAhead = 16 * kChunk;

  const Slice& slice;
  const bool hash, stream;
  // What loops read. They take a copy of it: what stands in memory could change with every store, as far as a compiler knows.
  struct Constants {
    Integer* own;
    void* states[K];
    const void* elements[N];
    Scale<Real> scales[K];
    Real sigma_before, sigma_after, inverse_after, numbers[N];
    int shifts[K];
    double seen;  // scale of the weights that show, for those of double
    bool stream;
  } constants;
  bool elementwise = false;
  Outcome outcome;

  template <int k>
  using State = StateLanes<Layout, k>;
  using States = PerState<Layout, StateLanes>;

  // What the chunks of a block have in common.
  template <class, int k>
  struct StateChecks {
    typename State<k>::Register increment{}, used{}, foreign{};
  };
  struct Checks {
    Integers change{}, weight{};
    PerState<Layout, StateChecks> states;
  };
  struct Sums {
    HashSum own, states[K];
    HashSum::Words keys = HashSum::first_keys(), wide_keys = keys;  // of the present register's words
    uint64_t rest[K + 1] = {};                                      // of the ragged end, by slot, the weight last
  };

  Worker(const Slice& of, bool with_hash, bool with_stream)
      : slice(of), hash(with_hash), stream(with_stream && reinterpret_cast<uintptr_t>(of.weight) % 64 == 0), constants{} {
    Constants& c = constants;
    c.own = static_cast<Integer*>(of.own.integers);
    for (int k = 0; k < K; ++k) {
      c.states[k] = of.states[k].integers;
      c.scales[k] = Scale<Real>::of(of.states[k].sigma);
      c.shifts[k] = of.states[k].shift;
    }
    c.sigma_before = static_cast<Real>(of.sigma_before);
    c.sigma_after = static_cast<Real>(of.own.sigma);
    c.inverse_after = static_cast<Real>(1.0 / of.own.sigma);
    c.seen = of.own.sigma;
    c.stream = stream;
    for (int j = 0; j < N; ++j) {
      c.numbers[j] = static_cast<Real>(of.numbers[j]);
      c.elements[j] = of.elements[j];
      elementwise |= of.elements[j] != nullptr;
    }
  }

  RH_INLINE Integer* x(int64_t i) const { return static_cast<Integer*>(slice.own.integers) + i; }
  template <int k>
  RH_INLINE const auto* z(int64_t i) const {
    return static_cast<const typename State<k>::Integer*>(slice.states[k].integers) + i;
  }
  RH_INLINE bool states_shift() const {
    for (int k = 0; k < K; ++k)
      if (slice.states[k].shift) return true;
    return false;
  }

  // Numbers of the rule for one register's lanes, which begin at weight i.
  template <bool kElements>
  RH_INLINE static void numbers_at(const Constants& c, int64_t i, int64_t count, Reals (&n)[N]) {
    for (int j = 0; j < N; ++j) {
      const auto* own = static_cast<const Real*>(c.elements[j]);
      if (!kElements || !own) {
        n[j] = all<Reals>(c.numbers[j]);
      } else if (count >= W) {
        n[j] = load<Reals>(own + i);
      } else {
        // Lanes beyond the tensor's end repeat its last number: of zeros, no rule makes anything worse than of a weight of 0.
        Reals last{};
        for (int64_t lane = 0; lane < W; ++lane) last[lane] = own[i + (lane < count ? lane : count - 1)];
        n[j] = last;
      }
    }
  }

  // What a step adds to each state, in order, and the checks of it; or the inverse, from the last state to the first.
  template <bool kForward, bool kWeight>
  RH_INLINE static void add_increments(const Constants& c, Reals g, Reals w, States& now, Reals (&values)[K], const Reals (&n)[N],
                                       Checks& checks) {
    const auto move = [&](auto state) __attribute__((always_inline)) {
      constexpr int k = state;
      auto& own = std::get<k>(now);
      auto& check = std::get<k>(checks.states);
      const auto q = State<k>::round(Rule::increment<k, kWeight>(g, w, values, n), c.scales[k]);
      own = kForward ? own + q : own - q;
      check.increment = check.increment | q.increment_words();
      if (!kForward) check.foreign = check.foreign | own.foreign_words(c.shifts[k]);
      values[k] = own.real(c.scales[k]);
    };
    if constexpr (kForward)
      for_states(move);
    else
      for_states_backwards(move);
  }

  // A cache line of each array, soon to be read.
  RH_INLINE static void prefetch(const Constants& c, int64_t i, const T* gradient) {
    __builtin_prefetch(gradient + i);
    __builtin_prefetch(c.own + i, 1);
    for_states([&](auto k) __attribute__((always_inline)) {
      const auto* z = static_cast<const typename State<k>::Integer*>(c.states[k]) + i;
      __builtin_prefetch(z, 1);
      if (sizeof *z * kChunk > 64) __builtin_prefetch(z + kChunk / 2, 1);
    });
  }

  // kForward: a step's, on contracted states; else undoes it. kMoves: the weights move along.
  template <bool kForward, bool kWeight, bool kMoves, bool kElements, bool kHash>
  RH_INLINE static void move_chunk(const Constants& c, int64_t i, int64_t count, const T* gradient, T* to, bool past,
                                   Checks& checks, Sums& sums) {
    for (int r = 0; r < kRegisters; ++r) {
      const int64_t at = i + r * W;
      States now;
      Reals values[K], n[N];
      for_states([&](auto k) __attribute__((always_inline)) {
        std::get<k>(now) = State<k>::load(c.states[k], at);
        values[k] = std::get<k>(now).real(c.scales[k]);
      });
      numbers_at<kElements>(c, at, count - r * W, n);
      const Reals g = read<P>(gradient + r * W);
      const Integers old = kWeight || kMoves ? load<Integers>(c.own + at) : Integers{};
      const Reals w = kWeight ? P::real(old) * c.sigma_before : Reals{};
      add_increments<kForward, kWeight>(c, g, w, now, values, n, checks);
      for_states([&](auto k) __attribute__((always_inline)) {
        auto& check = std::get<k>(checks.states);
        std::get<k>(now).store(c.states[k], at);
        if (kForward) check.used = check.used | std::get<k>(now).used_words();
        if (kHash && count >= kChunk) std::get<k>(now).hash(sums.states[k], State<k>::parts == 1 ? sums.keys : sums.wide_keys);
      });
      if constexpr (kMoves) {
        const Integers change = P::round(Rule::update(values, n) * c.inverse_after);
        const Integers moved = old - change;
        store(c.own + at, moved);
        checks.change = checks.change | increment_word<Layout>(change);
        checks.weight = checks.weight | used_bits(moved);
        if (kHash && count >= kChunk) sums.own.add(moved, sums.keys);
        write<P>(to + r * W, moved, all<Reals>(c.sigma_after), c.seen, past);
      }
      if (kHash) {
        sums.keys = HashSum::next_keys(sums.keys);
        sums.wide_keys = HashSum::next_keys(HashSum::next_keys(sums.wide_keys));
      }
    }
  }

  template <bool kForward, bool kWeight, bool kMoves, bool kElements, bool kHash>
  void move_block(int64_t begin, int64_t end, Checks& all_checks, Sums& all_sums) const {
    const Constants c = constants;
    Checks checks = all_checks;
    Sums sums;
    const T* gradient = static_cast<const T*>(slice.gradient);
    T* weight = static_cast<T*>(slice.weight);
    alignas(64) T seen[kChunk];
    int64_t i = begin;
    for (; i + kChunk <= end; i += kChunk) {
      if constexpr (kPrefetches) prefetch(c, i + kAhead, gradient);
      move_chunk<kForward, kWeight, kMoves, kElements, kHash>(c, i, kChunk, gradient + i, weight + i, c.stream, checks, sums);
    }
    if (i < end) {
      const auto bytes = sizeof(T) * static_cast<size_t>(end - i);
      T rest[kChunk] = {};
      memcpy(rest, gradient + i, bytes);
      move_chunk<kForward, kWeight, kMoves, kElements, kHash>(c, i, end - i, rest, seen, false, checks, sums);
      if (kMoves) memcpy(weight + i, seen, bytes);
      for_states([&](auto k) {
        if (kHash) sums.rest[k] = hash_of(z<k>(i), end - i, first_word<typename State<k>::Own>(i - begin));
      });
      if (kHash && kMoves) sums.rest[K] = hash_of(x(i), end - i, first_word<Layout>(i - begin));
    }
    all_checks = checks;
    all_sums = sums;
  }

  // Calls f with the forms of a block's loop as constants.
  template <class F>
  RH_INLINE void in_form(F f) const {
    const auto with = [&](auto weight) {
      // Loops without numbers per weight are worth their compile time for the usual type only.
      if constexpr (std::is_same<T, float>::value)
        if (!elementwise) return f(weight, std::false_type{});
      f(weight, std::true_type{});
    };
    if (Rule::looks_at_weight(slice))
      with(std::true_type{});
    else
      with(std::false_type{});
  }

  template <bool kForward, bool kMoves>
  void move_states(int64_t begin, int64_t end, Checks& checks, Sums& sums, bool with_hash) const {
    in_form([&](auto weight, auto elements) {
      if (with_hash)
        move_block<kForward, weight.value, kMoves, elements.value, true>(begin, end, checks, sums);
      else
        move_block<kForward, weight.value, kMoves, elements.value, false>(begin, end, checks, sums);
    });
  }

  void finish(int64_t begin, const HashSum& words, uint64_t rest, int stream_of_slot) {
    outcome.hash += hash_finish(words.sum() + rest, slice.position + begin, stream_of_slot);
  }
  void finish_states(int64_t begin, const Sums& sums) {
    for (int k = 0; hash && k < K; ++k) finish(begin, sums.states[k], sums.rest[k], k + 1);
  }

  void report(const Checks& checks, bool states, bool weight) {
    for_states([&](auto k) {
      const auto& check = std::get<k>(checks.states);
      if (bad_increment<typename State<k>::Own>(any_bit(check.increment))) outcome.flags |= kBadIncrement;
      if (states) note<typename State<k>::Own>(any_bit(check.used), k, kStateOverflow);
    });
    if (!weight) return;
    if (bad_increment<Layout>(any_bit(checks.change))) outcome.flags |= kBadChange;
    note<Layout>(any_bit(checks.weight), kMaxStates, kWeightOverflow);
  }
  template <class Own>
  void note(typename Own::Integer used, int slot, Flag flag) {
    outcome.used[slot] |= as_unsigned(used);
    if (beyond_limit<Own>(used)) outcome.flags |= flag;
  }
  static bool any_foreign(const Checks& checks) {
    bool any = false;
    for_states([&](auto k) { any |= any_bit(std::get<k>(checks.states).foreign) < 0; });
    return any;
  }

  void step(int64_t begin, int64_t end) {
    Checks checks;
    Sums sums;
    for_states([&](auto k) {
      if (slice.states[k].shift) contract_block<typename State<k>::Own>(slice.states[k], slice.size, begin, end);
    });
    const bool together = !slice.own.shift;
    if (together)
      move_states<true, true>(begin, end, checks, sums, hash);
    else
      move_states<true, false>(begin, end, checks, sums, hash);
    report(checks, true, together);
    finish_states(begin, sums);
    if (!together)
      move_weights<false>(begin, end);
    else if (hash)
      finish(begin, sums.own, sums.rest[K], 0);
  }

  template <bool kBack, bool kElements>
  RH_INLINE static void move_weights_chunk(const Constants& c, double seen_scale, int64_t i, int64_t count, T* to, bool past,
                                           Checks& checks) {
    for (int r = 0; r < kRegisters; ++r) {
      const int64_t at = i + r * W;
      Reals values[K], n[N];
      for_states([&](auto k) __attribute__((always_inline)) { values[k] = State<k>::load(c.states[k], at).real(c.scales[k]); });
      numbers_at<kElements>(c, at, count - r * W, n);
      const Integers change = P::round(Rule::update(values, n) * c.inverse_after);
      const Integers moved = kBack ? load<Integers>(c.own + at) + change : load<Integers>(c.own + at) - change;
      store(c.own + at, moved);
      if (!kBack) {
        checks.change = checks.change | increment_word<Layout>(change);
        checks.weight = checks.weight | used_bits(moved);
      }
      // Where there is a shift, the weight that shows is not there yet.
      write<P>(to + r * W, moved, all<Reals>(kBack ? c.sigma_before : c.sigma_after), seen_scale, past);
    }
  }

  template <bool kBack>
  void move_weights(int64_t begin, int64_t end) {
    Checks checks;
    T* weight = static_cast<T*>(slice.weight);
    alignas(64) T seen[kChunk];
    if (!kBack && slice.own.shift) contract_block<Layout>(slice.own, slice.size, begin, end);
    const Constants c = constants;
    const double scale = kBack ? slice.sigma_before : slice.own.sigma;
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = end - i < kChunk ? end - i : kChunk;
      const bool whole = count == kChunk;
      T* to = whole ? weight + i : seen;
      if (elementwise)
        move_weights_chunk<kBack, true>(c, scale, i, count, to, whole && c.stream, checks);
      else
        move_weights_chunk<kBack, false>(c, scale, i, count, to, whole && c.stream, checks);
      if (!whole) memcpy(weight + i, seen, sizeof(T) * static_cast<size_t>(count));
    }
    if (kBack && slice.own.shift) {
      expand_block<Layout>(slice.own, slice.size, begin, end);
      show(begin, end);
    }
    if (!kBack) report(checks, false, true);
    if (hash) outcome.hash += hash_finish(hash_of_block<Layout>(x(begin), end - begin), slice.position + begin, 0);
  }

  // The visible weights of before the step, of what stands there.
  void show(int64_t begin, int64_t end) const {
    T* weight = static_cast<T*>(slice.weight);
    for (int64_t i = begin; i < end; ++i) weight[i] = visible<T, Layout>(*x(i), slice.sigma_before);
  }

  // Of a block at rest.
  template <class Own>
  uint64_t hash_of_block(const typename Own::Integer* first, int64_t count) const {
    using Q = Pack<Own>;
    HashSum words;
    auto keys = HashSum::first_keys();
    int64_t i = 0;
    for (; i + Q::width <= count; i += Q::width, keys = HashSum::next_keys(keys))
      words.add(load<typename Q::Integer>(first + i), keys);
    return words.sum() + hash_of(first + i, count - i, first_word<Own>(i));
  }
  template <class Own>
  static int first_word(int64_t i) {
    return static_cast<int>(i * Own::bits / 64);
  }
  void rest(int64_t begin, int64_t end, bool weights, bool states) {
    if (!hash) return;
    if (weights) outcome.hash += hash_finish(hash_of_block<Layout>(x(begin), end - begin), slice.position + begin, 0);
    for_states([&](auto k) {
      if (states)
        outcome.hash +=
            hash_finish(hash_of_block<typename State<k>::Own>(z<k>(begin), end - begin), slice.position + begin, k + 1);
    });
  }

  // Returns false, with nothing changed, if the gradient cannot have led to these states and undoing would lose bits.
  bool undo_states(int64_t begin, int64_t end) {
    Checks checks;
    Sums sums;
    const bool shift = states_shift();  // then the states that are hashed come later
    move_states<false, false>(begin, end, checks, sums, hash && !shift);
    report(checks, false, false);
    const bool foreign = any_foreign(checks);
    if (foreign) outcome.flags |= kForeignGradient;
    if (!shift) {
      finish_states(begin, sums);
      return true;
    }
    if (foreign) {
      // The very same sums once more, added: the states are back.
      move_states<true, false>(begin, end, checks, sums, false);
      return false;
    }
    for_states([&](auto k) {
      if (slice.states[k].shift) expand_block<typename State<k>::Own>(slice.states[k], slice.size, begin, end);
    });
    rest(begin, end, false, true);
    return true;
  }

  void run(Phase phase, int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      const int64_t begin = index * kBlockSize, end = begin + kBlockSize < slice.size ? begin + kBlockSize : slice.size;
      uint8_t* skipped = slice.skipped ? slice.skipped + index : nullptr;
      if (!slice.active) {
        rest(begin, end, phase != Phase::undo_states, phase == Phase::step || phase == Phase::undo_states);
      } else if (phase == Phase::undo_weights) {
        move_weights<true>(begin, end);
      } else if (phase == Phase::redo_weights) {
        move_weights<false>(begin, end);
      } else if (phase == Phase::step && skipped && *skipped) {
        move_weights<false>(begin, end);
        rest(begin, end, false, true);
      } else if (phase == Phase::step) {
        step(begin, end);
      } else {
        const bool done = undo_states(begin, end);
        if (skipped) *skipped = !done;
      }
    }
#if defined(__x86_64__)
    if (stream) _mm_sfence();
#endif
  }
};

}  // namespace
}  // namespace rh
