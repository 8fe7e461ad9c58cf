// One tensor's blocks under one phase, a chunk of kChunk weights at a time. Included by kernels.cpp alone, and so compiled once
// per rule and instruction set; see lanes.h.
#pragma once

#include "../core/slices.h"
#include "../rules/rule.h"
#include "kernels.h"
#include "lanes.h"
#include "slot_block.h"

namespace rh {
namespace {

constexpr int K = Rule::kStates;
constexpr int N = Rule::kNumbers;

template <class Layout, class T>
struct Worker {
  using P = Pack<Layout>;
  using Integer = typename Layout::Integer;
  using Real = typename Layout::Real;
  using Integers = typename P::Integer;
  using Reals = typename P::Real;
  static constexpr int W = P::width, kRegisters = kChunk / W;

  const Slice& slice;
  const bool hash, stream;
  // What loops read. They take a copy of it: what stands in memory could change with every store, as far as a compiler knows.
  struct Constants {
    Integer* own;
    Integer* states[K];
    const void* elements[N];
    Real sigma[K], inverse[K], sigma_before, sigma_after, inverse_after, numbers[N];
    Integer largest[K], lowest[K];  // that a contraction can give
    double seen;                    // scale of the weights that show, for those of double
    bool stream;
  } constants;
  bool elementwise = false;
  Outcome outcome;

  // What the chunks of a block have in common.
  struct Checks {
    Integers increment{}, change{}, weight{}, states[K]{};
    Integers foreign{};
  };
  struct Sums {
    HashSum<Layout> own, states[K];
    typename P::Words keys = HashSum<Layout>::first_keys();
    uint64_t rest[K + 1] = {};  // of the ragged end, by slot, the weight last
  };

  Worker(const Slice& of, bool with_hash, bool with_stream)
      : slice(of), hash(with_hash), stream(with_stream && reinterpret_cast<uintptr_t>(of.weight) % 64 == 0), constants{} {
    Constants& c = constants;
    c.own = static_cast<Integer*>(of.own.integers);
    for (int k = 0; k < K; ++k) {
      c.states[k] = static_cast<Integer*>(of.states[k].integers);
      c.sigma[k] = static_cast<Real>(of.states[k].sigma);
      c.inverse[k] = static_cast<Real>(1.0 / of.states[k].sigma);
      c.largest[k] = largest_contracted<Layout>(of.states[k].shift);
      c.lowest[k] = -(Integer{1} << (Layout::limit_bits - of.states[k].shift));
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
  RH_INLINE Integer* z(int k, int64_t i) const { return static_cast<Integer*>(slice.states[k].integers) + i; }
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
        // Lanes beyond the tensor's end repeat its last number: of zeros, no rule makes anything worse than of a weight that is
        // 0.
        for (int64_t lane = 0; lane < W; ++lane) n[j][lane] = own[i + (lane < count ? lane : count - 1)];
      }
    }
  }

  // What a step adds to state k and the states behind it, in order, and the checks of it.
  template <int k, bool kWeight>
  RH_INLINE static void add_increments(const Constants& c, Reals g, Reals w, Integers (&now)[K], Reals (&values)[K],
                                       const Reals (&n)[N], Checks& checks) {
    if constexpr (k < K) {
      const Integers q = P::round(Rule::increment<k, kWeight>(g, w, values, n) * c.inverse[k]);
      now[k] = now[k] + q;
      checks.increment = checks.increment | increment_word<Layout>(q);
      values[k] = P::real(now[k]) * c.sigma[k];
      add_increments<k + 1, kWeight>(c, g, w, now, values, n, checks);
    }
  }
  // The inverse, from the last state to the first.
  template <int k, bool kWeight>
  RH_INLINE static void subtract_increments(const Constants& c, Reals g, Reals w, Integers (&now)[K], Reals (&values)[K],
                                            const Reals (&n)[N], Checks& checks) {
    if constexpr (k >= 0) {
      const Integers q = P::round(Rule::increment<k, kWeight>(g, w, values, n) * c.inverse[k]);
      now[k] = now[k] - q;
      checks.increment = checks.increment | increment_word<Layout>(q);
      checks.foreign = checks.foreign | foreign_word<Layout>(now[k], c.largest[k], c.lowest[k]);
      values[k] = P::real(now[k]) * c.sigma[k];
      subtract_increments<k - 1, kWeight>(c, g, w, now, values, n, checks);
    }
  }

  // kForward: a step's, on contracted states; else undoes it. kMoves: the weights move along.
  template <bool kForward, bool kWeight, bool kMoves, bool kElements, bool kHash>
  RH_INLINE static void move_chunk(const Constants& c, int64_t i, int64_t count, const T* gradient, T* to, bool past,
                                   Checks& checks, Sums& sums) {
    for (int r = 0; r < kRegisters; ++r) {
      const int64_t at = i + r * W;
      Integers now[K];
      Reals values[K], n[N];
      for (int k = 0; k < K; ++k) {
        now[k] = load<Integers>(c.states[k] + at);
        values[k] = P::real(now[k]) * c.sigma[k];
      }
      numbers_at<kElements>(c, at, count - r * W, n);
      const Reals g = read<P>(gradient + r * W);
      const Integers old = kWeight || kMoves ? load<Integers>(c.own + at) : Integers{};
      const Reals w = kWeight ? P::real(old) * c.sigma_before : Reals{};
      if constexpr (kForward)
        add_increments<0, kWeight>(c, g, w, now, values, n, checks);
      else
        subtract_increments<K - 1, kWeight>(c, g, w, now, values, n, checks);
      for (int k = 0; k < K; ++k) {
        store(c.states[k] + at, now[k]);
        if (kForward) checks.states[k] = checks.states[k] | used_bits(now[k]);
        if (kHash && count >= kChunk) sums.states[k].add(now[k], sums.keys);
      }
      if constexpr (kMoves) {
        const Integers change = P::round(Rule::update(values, n) * c.inverse_after);
        const Integers moved = old - change;
        store(c.own + at, moved);
        checks.change = checks.change | increment_word<Layout>(change);
        checks.weight = checks.weight | used_bits(moved);
        if (kHash && count >= kChunk) sums.own.add(moved, sums.keys);
        write<P>(to + r * W, moved, all<Reals>(c.sigma_after), c.seen, past);
      }
      if (kHash) sums.keys = HashSum<Layout>::next_keys(sums.keys);
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
      move_chunk<kForward, kWeight, kMoves, kElements, kHash>(c, i, kChunk, gradient + i, weight + i, c.stream, checks, sums);
    }
    if (i < end) {
      const int word = first_word(i - begin);
      const auto bytes = sizeof(T) * static_cast<size_t>(end - i);
      T rest[kChunk] = {};
      memcpy(rest, gradient + i, bytes);
      move_chunk<kForward, kWeight, kMoves, kElements, kHash>(c, i, end - i, rest, seen, false, checks, sums);
      if (kMoves) memcpy(weight + i, seen, bytes);
      for (int k = 0; kHash && k < K; ++k) sums.rest[k] = hash_of(z(k, i), end - i, word);
      if (kHash && kMoves) sums.rest[K] = hash_of(x(i), end - i, word);
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

  void finish(int64_t begin, const HashSum<Layout>& words, uint64_t rest, int stream_of_slot) {
    outcome.hash += hash_finish(words.sum() + rest, slice.position + begin, stream_of_slot);
  }
  void finish_states(int64_t begin, const Sums& sums) {
    for (int k = 0; hash && k < K; ++k) finish(begin, sums.states[k], sums.rest[k], k + 1);
  }

  void report(const Checks& checks, bool states, bool weight) {
    if (bad_increment<Layout>(any_bit(checks.increment))) outcome.flags |= kBadIncrement;
    for (int k = 0; states && k < K; ++k) note(checks.states[k], k, kStateOverflow);
    if (!weight) return;
    if (bad_increment<Layout>(any_bit(checks.change))) outcome.flags |= kBadChange;
    note(checks.weight, kMaxStates, kWeightOverflow);
  }
  void note(Integers word, int slot, Flag flag) {
    const Integer used = any_bit(word);
    outcome.used[slot] |= as_unsigned(used);
    if (beyond_limit<Layout>(used)) outcome.flags |= flag;
  }

  void step(int64_t begin, int64_t end) {
    Checks checks;
    Sums sums;
    for (int k = 0; k < K; ++k)
      if (slice.states[k].shift) contract_block<Layout>(slice.states[k], slice.size, begin, end);
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
      for (int k = 0; k < K; ++k) values[k] = P::real(load<Integers>(c.states[k] + at)) * c.sigma[k];
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
    if (hash) outcome.hash += hash_finish(hash_of_block(x(begin), end - begin), slice.position + begin, 0);
  }

  // The visible weights of before the step, of what stands there.
  void show(int64_t begin, int64_t end) const {
    T* weight = static_cast<T*>(slice.weight);
    for (int64_t i = begin; i < end; ++i) weight[i] = visible<T, Layout>(*x(i), slice.sigma_before);
  }

  // Of a block at rest.
  uint64_t hash_of_block(const Integer* first, int64_t count) const {
    HashSum<Layout> words;
    auto keys = HashSum<Layout>::first_keys();
    int64_t i = 0;
    for (; i + W <= count; i += W, keys = HashSum<Layout>::next_keys(keys)) words.add(load<Integers>(first + i), keys);
    return words.sum() + hash_of(first + i, count - i, first_word(i));
  }
  static int first_word(int64_t i) { return static_cast<int>(i * Layout::bits / 64); }
  void rest(int64_t begin, int64_t end, bool weights, bool states) {
    if (!hash) return;
    if (weights) outcome.hash += hash_finish(hash_of_block(x(begin), end - begin), slice.position + begin, 0);
    for (int k = 0; states && k < K; ++k)
      outcome.hash += hash_finish(hash_of_block(z(k, begin), end - begin), slice.position + begin, k + 1);
  }

  // Returns false, with nothing changed, if the gradient cannot have led to these states and undoing would lose bits.
  bool undo_states(int64_t begin, int64_t end) {
    Checks checks;
    Sums sums;
    const bool shift = states_shift();  // then the states that are hashed come later
    move_states<false, false>(begin, end, checks, sums, hash && !shift);
    report(checks, false, false);
    if (any_bit(checks.foreign) < 0) outcome.flags |= kForeignGradient;
    if (!shift) {
      finish_states(begin, sums);
      return true;
    }
    if (any_bit(checks.foreign) < 0) {
      // The very same sums once more, added: the states are back.
      move_states<true, false>(begin, end, checks, sums, false);
      return false;
    }
    for (int k = 0; k < K; ++k)
      if (slice.states[k].shift) expand_block<Layout>(slice.states[k], slice.size, begin, end);
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
