// One tensor's blocks under one phase, a chunk of kChunk weights at a time. Included by kernels.cpp alone, and so compiled once
// per rule and instruction set; see lanes.h.
#pragma once

#include "../core/hash.h"
#include "../core/planes.h"
#include "../core/slices.h"
#include "../rules/rule.h"
#include "kernels.h"
#include "lanes.h"

namespace rh {
namespace {

constexpr int kChunk = kStateAlignment;  // 16 weights: two bytes of a plane, a cache line of float weights
constexpr int K = Rule::kStates;
constexpr int N = Rule::kNumbers;

// One chunk of weights on its way to memory. Streaming stores spare the read of the line that is overwritten whole; they pay
// where the weights do not fit the cache anyway.
template <size_t bytes>
RH_INLINE void write_chunk(void* to, const void* from, bool stream) {
#if defined(__AVX512F__)
  if (bytes % 64 == 0 && stream) {
    for (size_t i = 0; i < bytes; i += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + i), _mm512_load_si512(static_cast<const char*>(from) + i));
    return;
  }
#elif defined(__x86_64__)
  if (bytes % 16 == 0 && stream) {
    for (size_t i = 0; i < bytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + i),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + i)));
    return;
  }
#endif
  (void)stream;
  memcpy(to, from, bytes);
}

// The hash's words of the slots of one block, in registers.
template <class Layout>
struct HashSum {
  using P = Pack<Layout>;
  using Words = typename P::Words;
  static constexpr int kPerRegister = sizeof(Words) / 8, kPerChunk = kChunk * Layout::bits / 64;
  Words total{};

  // `part`: which register of the chunk that begins with word `first`.
  RH_INLINE void add(typename P::Integer z, int part, int first) {
    Words key;
    for (int j = 0; j < kPerRegister; ++j) key[j] = hash_key(j);
    const Words keyed = as_bits<Words>(z) + (key + kKeyStride * static_cast<uint64_t>(first + part * kPerRegister));
    total += multiply_halves(keyed);
  }
  RH_INLINE uint64_t sum() const {
    uint64_t all = 0;
    for (int j = 0; j < kPerRegister; ++j) all += total[j];
    return all;
  }
};

// Of `count` integers from one that begins word `first` on; the missing half of a last word counts as zero.
template <class Integer>
RH_INLINE uint64_t hash_of(const Integer* z, int64_t count, int first) {
  constexpr int per_word = 8 / sizeof(Integer);
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; i += per_word) {
    uint64_t word = 0;
    memcpy(&word, z + i, sizeof(Integer) * static_cast<size_t>(count - i < per_word ? count - i : per_word));
    sum += hash_word(word, first++);
  }
  return sum;
}

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
  Real sigma[K], inverse[K], sigma_before, sigma_after, inverse_after;
  Real numbers[N];
  bool elementwise = false;
  Outcome outcome;

  // What the chunks of a block have in common.
  struct Checks {
    Integers increment{}, change{}, weight{}, states[K]{};
    Integers foreign{};
  };
  struct Sums {
    HashSum<Layout> own, states[K];
    uint64_t rest[K + 1] = {};  // of the ragged end, by slot, the weight last
  };

  Worker(const Slice& of, bool with_hash, bool with_stream)
      : slice(of), hash(with_hash), stream(with_stream && reinterpret_cast<uintptr_t>(of.weight) % 64 == 0) {
    for (int k = 0; k < K; ++k) {
      sigma[k] = static_cast<Real>(of.states[k].sigma);
      inverse[k] = static_cast<Real>(1.0 / of.states[k].sigma);
    }
    sigma_before = static_cast<Real>(of.sigma_before);
    sigma_after = static_cast<Real>(of.own.sigma);
    inverse_after = static_cast<Real>(1.0 / of.own.sigma);
    for (int j = 0; j < N; ++j) {
      numbers[j] = static_cast<Real>(of.numbers[j]);
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
  RH_INLINE void numbers_at(int64_t i, int64_t count, Reals (&n)[N]) const {
    for (int j = 0; j < N; ++j) {
      const auto* own = static_cast<const Real*>(slice.elements[j]);
      if (!kElements || !own) {
        n[j] = all<Reals>(numbers[j]);
      } else if (count >= W) {
        n[j] = load<Reals>(own + i);
      } else {
        n[j] = Reals{};
        for (int64_t lane = 0; lane < count; ++lane) n[j][lane] = own[i + lane];
      }
    }
  }

  // The bits of a slot's integers in weights [begin, end), to and from its planes.
  void contract_block(const Slot& slot, int64_t begin, int64_t end) const {
    auto* first = static_cast<Integer*>(slot.integers);
    const int64_t stride = plane_bytes(slice.size);
    for (int64_t i = begin; i < end; i += kChunk) {
      Integers t[kRegisters];
      for (int r = 0; r < kRegisters; ++r) t[r] = load<Integers>(first + i + r * W) + static_cast<Integer>(slot.centre);
      for (int b = 0; b < slot.shift; ++b) {
        unsigned bits = 0;
        for (int r = 0; r < kRegisters; ++r) {
          bits |= P::low_bits(t[r]) << (r * W);
          t[r] = t[r] >> 1;
        }
        uint8_t* to = slot.planes + b * stride + i / 8;
        if (end - i < kChunk) bits &= (1u << (end - i)) - 1;
        to[0] = static_cast<uint8_t>(bits);
        if (end - i > 8) to[1] = static_cast<uint8_t>(bits >> 8);
      }
      for (int r = 0; r < kRegisters; ++r) store(first + i + r * W, t[r]);
      if (end - i < kChunk) memset(first + end, 0, sizeof(Integer) * static_cast<size_t>(i + kChunk - end));
    }
  }
  void expand_block(const Slot& slot, int64_t begin, int64_t end) const {
    auto* first = static_cast<Integer*>(slot.integers);
    const int64_t stride = plane_bytes(slice.size);
    for (int64_t i = begin; i < end; i += kChunk) {
      Integers t[kRegisters];
      for (int r = 0; r < kRegisters; ++r) t[r] = load<Integers>(first + i + r * W);
      for (int b = slot.shift - 1; b >= 0; --b) {
        const uint8_t* from = slot.planes + b * stride + i / 8;
        const unsigned bits = from[0] | (end - i > 8 ? from[1] << 8 : 0u);
        for (int r = 0; r < kRegisters; ++r) t[r] = t[r] + t[r] + P::from_bits(bits >> (r * W) & ((1u << W) - 1));
      }
      for (int r = 0; r < kRegisters; ++r) store(first + i + r * W, t[r] - static_cast<Integer>(slot.centre));
      if (end - i < kChunk) memset(first + end, 0, sizeof(Integer) * static_cast<size_t>(i + kChunk - end));
    }
  }

  // What a step adds to state k and the states behind it, in order, and the checks of it.
  template <int k, bool kWeight>
  RH_INLINE void add_increments(Reals g, Reals w, Integers (&now)[K], Reals (&values)[K], const Reals (&n)[N], Checks& checks) const {
    if constexpr (k < K) {
      const Integers q = P::round(Rule::increment<k, kWeight>(g, w, values, n) * inverse[k]);
      now[k] = now[k] + q;
      checks.increment = checks.increment | increment_word<Layout>(q);
      values[k] = P::real(now[k]) * sigma[k];
      add_increments<k + 1, kWeight>(g, w, now, values, n, checks);
    }
  }
  // The inverse, from the last state to the first.
  template <int k, bool kWeight>
  RH_INLINE void subtract_increments(Reals g, Reals w, Integers (&now)[K], Reals (&values)[K], const Reals (&n)[N],
                                     Checks& checks) const {
    if constexpr (k >= 0) {
      const Integers q = P::round(Rule::increment<k, kWeight>(g, w, values, n) * inverse[k]);
      now[k] = now[k] - q;
      checks.increment = checks.increment | increment_word<Layout>(q);
      checks.foreign = checks.foreign | foreign_word(now[k], contraction_limit<Layout>(slice.states[k].shift));
      values[k] = P::real(now[k]) * sigma[k];
      subtract_increments<k - 1, kWeight>(g, w, now, values, n, checks);
    }
  }

  // kForward: a step's, on contracted states; else undoes it. kMoves: the weights move along.
  template <bool kForward, bool kWeight, bool kMoves, bool kElements>
  RH_INLINE void move_chunk(int64_t i, int64_t count, const T* gradient, T* seen, int word, Checks& checks, Sums& sums) const {
    for (int r = 0; r < kRegisters; ++r) {
      const int64_t at = i + r * W;
      Integers now[K];
      Reals values[K], n[N];
      for (int k = 0; k < K; ++k) {
        now[k] = load<Integers>(z(k, at));
        values[k] = P::real(now[k]) * sigma[k];
      }
      numbers_at<kElements>(at, count - r * W, n);
      const Reals g = read<P>(gradient + r * W);
      const Integers old = kWeight || kMoves ? load<Integers>(x(at)) : Integers{};
      const Reals w = kWeight ? P::real(old) * sigma_before : Reals{};
      if constexpr (kForward)
        add_increments<0, kWeight>(g, w, now, values, n, checks);
      else
        subtract_increments<K - 1, kWeight>(g, w, now, values, n, checks);
      for (int k = 0; k < K; ++k) {
        store(z(k, at), now[k]);
        if (kForward) checks.states[k] = checks.states[k] | used_bits(now[k]);
        if (hash && count >= kChunk) sums.states[k].add(now[k], r, word);
      }
      if constexpr (kMoves) {
        const Integers change = P::round(Rule::update(values, n) * inverse_after);
        const Integers moved = old - change;
        store(x(at), moved);
        checks.change = checks.change | increment_word<Layout>(change);
        checks.weight = checks.weight | used_bits(moved);
        if (hash && count >= kChunk) sums.own.add(moved, r, word);
        write<P>(seen + r * W, moved, all<Reals>(sigma_after), slice.own.sigma);
      }
    }
  }

  template <bool kForward, bool kWeight, bool kMoves, bool kElements>
  void move_block(int64_t begin, int64_t end, Checks& checks, Sums& sums) const {
    const T* gradient = static_cast<const T*>(slice.gradient);
    T* weight = static_cast<T*>(slice.weight);
    alignas(64) T seen[kChunk];
    int64_t i = begin;
    int word = 0;
    for (; i + kChunk <= end; i += kChunk, word += HashSum<Layout>::kPerChunk) {
      move_chunk<kForward, kWeight, kMoves, kElements>(i, kChunk, gradient + i, seen, word, checks, sums);
      if (kMoves) write_chunk<sizeof seen>(weight + i, seen, stream);
    }
    if (i == end) return;
    const auto bytes = sizeof(T) * static_cast<size_t>(end - i);
    T rest[kChunk] = {};
    memcpy(rest, gradient + i, bytes);
    move_chunk<kForward, kWeight, kMoves, kElements>(i, end - i, rest, seen, word, checks, sums);
    if (kMoves) memcpy(weight + i, seen, bytes);
    if (!hash) return;
    for (int k = 0; k < K; ++k) sums.rest[k] = hash_of(z(k, i), end - i, word);
    if (kMoves) sums.rest[K] = hash_of(x(i), end - i, word);
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
  void move_states(int64_t begin, int64_t end, Checks& checks, Sums& sums) const {
    in_form([&](auto weight, auto elements) {
      move_block<kForward, weight.value, kMoves, elements.value>(begin, end, checks, sums);
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
      if (slice.states[k].shift) contract_block(slice.states[k], begin, end);
    const bool together = !slice.own.shift;
    if (together)
      move_states<true, true>(begin, end, checks, sums);
    else
      move_states<true, false>(begin, end, checks, sums);
    report(checks, true, together);
    finish_states(begin, sums);
    if (!together)
      move_weights<false>(begin, end);
    else if (hash)
      finish(begin, sums.own, sums.rest[K], 0);
  }

  template <bool kBack, bool kElements>
  RH_INLINE void move_weights_chunk(int64_t i, int64_t count, T* seen, Checks& checks) const {
    for (int r = 0; r < kRegisters; ++r) {
      const int64_t at = i + r * W;
      Reals values[K], n[N];
      for (int k = 0; k < K; ++k) values[k] = P::real(load<Integers>(z(k, at))) * sigma[k];
      numbers_at<kElements>(at, count - r * W, n);
      const Integers change = P::round(Rule::update(values, n) * inverse_after);
      const Integers moved = kBack ? load<Integers>(x(at)) + change : load<Integers>(x(at)) - change;
      store(x(at), moved);
      if (!kBack) {
        checks.change = checks.change | increment_word<Layout>(change);
        checks.weight = checks.weight | used_bits(moved);
      }
      // Where there is a shift, the weight that shows is not there yet.
      write<P>(seen + r * W, moved, all<Reals>(kBack ? sigma_before : sigma_after), kBack ? slice.sigma_before : slice.own.sigma);
    }
  }

  template <bool kBack>
  void move_weights(int64_t begin, int64_t end) {
    Checks checks;
    T* weight = static_cast<T*>(slice.weight);
    alignas(64) T seen[kChunk];
    if (!kBack && slice.own.shift) contract_block(slice.own, begin, end);
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = end - i < kChunk ? end - i : kChunk;
      if (elementwise)
        move_weights_chunk<kBack, true>(i, count, seen, checks);
      else
        move_weights_chunk<kBack, false>(i, count, seen, checks);
      if (count == kChunk)
        write_chunk<sizeof seen>(weight + i, seen, stream);
      else
        memcpy(weight + i, seen, sizeof(T) * static_cast<size_t>(count));
    }
    if (kBack && slice.own.shift) {
      expand_block(slice.own, begin, end);
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
    int64_t i = 0;
    int word = 0;
    for (; i + kChunk <= count; i += kChunk, word += HashSum<Layout>::kPerChunk)
      for (int r = 0; r < kRegisters; ++r) words.add(load<Integers>(first + i + r * W), r, word);
    return words.sum() + hash_of(first + i, count - i, word);
  }
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
    move_states<false, false>(begin, end, checks, sums);
    report(checks, false, false);
    if (any_bit(checks.foreign) < 0) outcome.flags |= kForeignGradient;
    if (!states_shift()) {
      finish_states(begin, sums);
      return true;
    }
    if (any_bit(checks.foreign) < 0) {
      // The very same sums once more, added: the states are back.
      move_states<true, false>(begin, end, checks, sums);
      return false;
    }
    for (int k = 0; k < K; ++k)
      if (slice.states[k].shift) expand_block(slice.states[k], begin, end);
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
