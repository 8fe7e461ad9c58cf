// What one thread does: the same phases as csrc/cpu/kernels.cpp, on a few neighbouring lanes of one block.
//
// A thread holds as many lanes as make 16 bytes of state: 2 of 64 bits, 4 of 32. Weights of a lane stand a row apart, so
// the threads of a row read neighbouring 16 bytes; a block of 64 lanes takes a warp, or half a one. The accumulators stay in
// registers from the first row to the last. Ragged blocks, and tensors that stand askew in memory, go element by element.
#pragma once

#include "../core/hash.h"
#include "table.h"

namespace rh {

// Neighbouring elements that move at once, 16 bytes at most.
template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Vector {
  T at[count];
};

// `valid` of the elements exist; kWhole: all, and p is a multiple of the vector's alignment.
template <bool kWhole, int count, class T>
RH_INLINE Vector<T, count> load(const T* p, int valid) {
  if constexpr (kWhole) {
    return *reinterpret_cast<const Vector<T, count>*>(p);
  } else {
    Vector<T, count> v;
#pragma unroll
    for (int i = 0; i < count; ++i) v.at[i] = i < valid ? p[i] : T{};
    return v;
  }
}

template <bool kWhole, int count, class T>
RH_INLINE void store(T* p, const Vector<T, count>& v, int valid) {
  if constexpr (kWhole) {
    *reinterpret_cast<Vector<T, count>*>(p) = v;
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (i < valid) p[i] = v.at[i];
  }
}

// What a thread has found out about its part of a block.
struct Found {
  uint64_t x_sum = 0, v_sum = 0;  // of hash_word
  bool hashes_x = false, hashes_v = false;
  uint32_t flags = 0;
};

template <class State, class T>
struct Thread {
  using Integer = typename State::Integer;
  using Accumulator = typename State::Accumulator;
  using Real = typename State::Real;
  static constexpr int L = 16 / static_cast<int>(sizeof(Integer));  // lanes
  static constexpr int per_block = kLanesPerBlock / L;              // threads
  static constexpr int kAhead = 2;  // rows that are read before the first of them is written: enough to hide memory

  const Shared<State>& shared;
  const Entry& entry;
  int64_t begin, lane;  // of the block: first weight in the tensor, first lane in the bucket
  int lanes, first;     // of the block; the thread's first one
  int size;             // weights of the block
  Coefficients<State> coefficients;

  RH_INLINE Thread(const Shared<State>& of, const Entry& e, int64_t block, int thread)
      : shared(of),
        entry(e),
        begin((block - e.first_block) * kBlockSize),
        lane(e.slice.lane_offset + (block - e.first_block) * kLanesPerBlock),
        lanes(lanes_in_block(e.slice.size, begin)),
        first(thread * L),
        size(e.slice.size - begin < kBlockSize ? static_cast<int>(e.slice.size - begin) : kBlockSize),
        coefficients{static_cast<Real>(e.slice.gradient_coefficient), static_cast<Real>(e.slice.decay_coefficient),
                     static_cast<Real>(e.slice.lr)} {}

  RH_INLINE bool whole() const { return size == kBlockSize && entry.vectors; }
  RH_INLINE int64_t position() const { return entry.slice.state_offset + begin; }
  RH_INLINE uint8_t* skipped() const {
    return shared.bucket.skipped ? shared.bucket.skipped + entry.first_skipped + begin / kBlockSize : nullptr;
  }

  // The thread's part of row k: where it begins in the block, and how many of its elements exist.
  template <bool kWhole>
  RH_INLINE int start(int k) const {
    return k * (kWhole ? kLanesPerBlock : lanes) + first;
  }
  template <bool kWhole>
  RH_INLINE int valid(int k) const {
    if (kWhole) return L;
    const int in_row = lanes - first, in_block = size - start<false>(k);
    const int least = in_row < in_block ? in_row : in_block;
    return least < 0 ? 0 : least < L ? least : L;
  }

  RH_INLINE Integer* x(int i) const { return static_cast<Integer*>(shared.bucket.weights) + position() + i; }
  RH_INLINE Integer* v(int i) const { return static_cast<Integer*>(shared.bucket.velocities) + position() + i; }
  RH_INLINE T* weight(int i) const { return static_cast<T*>(entry.slice.weight) + begin + i; }
  RH_INLINE const T* gradient(int i) const { return static_cast<const T*>(entry.slice.gradient) + begin + i; }

  // The learning rates of a row: one number, or one per weight.
  template <bool kWhole>
  RH_INLINE Vector<Real, L> rates(int k) const {
    if (entry.slice.lr_elements)
      return load<kWhole, L>(static_cast<const Real*>(entry.slice.lr_elements) + begin + start<kWhole>(k), valid<kWhole>(k));
    Vector<Real, L> all;
#pragma unroll
    for (int i = 0; i < L; ++i) all.at[i] = coefficients.lr;
    return all;
  }

  // Accumulators. A tensor's lanes begin anywhere, so their alignment is looked at here.
  RH_INLINE int lanes_here() const { return lanes - first < 0 ? 0 : lanes - first < L ? lanes - first : L; }
  RH_INLINE Accumulator* accumulators() const { return static_cast<Accumulator*>(shared.bucket.accumulators) + lane + first; }
  RH_INLINE bool accumulators_are_vectors() const {
    return lanes_here() == L && reinterpret_cast<uintptr_t>(accumulators()) % 16 == 0;
  }
  RH_INLINE Vector<Accumulator, L> load_accumulators() const {
    return accumulators_are_vectors() ? load<true, L>(accumulators(), L) : load<false, L>(accumulators(), lanes_here());
  }
  RH_INLINE void store_accumulators(const Vector<Accumulator, L>& s) const {
    accumulators_are_vectors() ? store<true, L>(accumulators(), s, L) : store<false, L>(accumulators(), s, lanes_here());
  }

  // Before row k is pushed, if this step spills there.
  RH_INLINE void spill(Vector<Accumulator, L>& s, int k) const {
    const int bits = shared.bucket.spill_bits[k];
    if (bits == 0) return;
#pragma unroll
    for (int i = 0; i < L; ++i)
      if (i < lanes_here()) {
        const int64_t at = lane + first + i;
        if (bits == 16)
          static_cast<uint16_t*>(shared.bucket.planes[k])[at] = static_cast<uint16_t>(s.at[i]);
        else
          static_cast<uint8_t*>(shared.bucket.planes[k])[at] = static_cast<uint8_t>(s.at[i]);
        s.at[i] >>= bits;
      }
  }
  RH_INLINE void refill(Vector<Accumulator, L>& s, int k) const {
    const int bits = shared.bucket.spill_bits[k];
    if (bits == 0) return;
#pragma unroll
    for (int i = 0; i < L; ++i)
      if (i < lanes_here()) {
        const int64_t at = lane + first + i;
        s.at[i] = s.at[i] << bits | (bits == 16 ? static_cast<const uint16_t*>(shared.bucket.planes[k])[at]
                                                : static_cast<const uint8_t*>(shared.bucket.planes[k])[at]);
      }
  }

  // Sum of hash_word over the thread's part of row k: words of 64 bits, numbered from the row's beginning.
  template <bool kWhole>
  RH_INLINE uint64_t hash_row(const Vector<Integer, L>& row, int k) const {
    const int count = valid<kWhole>(k);
    uint64_t sum = 0;
    if constexpr (sizeof(Integer) == 8) {
#pragma unroll
      for (int i = 0; i < L; ++i)
        if (kWhole || i < count) sum += hash_word(static_cast<uint64_t>(row.at[i]), start<kWhole>(k) + i);
    } else {
      const int base = k * (kWhole ? kLanesPerBlock : lanes) / 2 + first / 2;
#pragma unroll
      for (int i = 0; i < L; i += 2) {
        const uint64_t low = static_cast<uint32_t>(row.at[i]), high = static_cast<uint32_t>(row.at[i + 1]);
        if (kWhole || i + 1 < count)
          sum += hash_word(low | high << 32, base + i / 2);
        else if (i < count)
          sum += hash_word(low, base + i / 2);
      }
    }
    return sum;
  }
  template <bool kWhole>
  RH_INLINE void hash_at_rest(bool of_x, bool of_v, Found& found) const {
    if (!shared.hash) return;
#pragma unroll 1
    for (int k = 0; k < kWeightsPerLane; ++k) {
      const int i = start<kWhole>(k), count = valid<kWhole>(k);
      if (of_x) found.x_sum += hash_row<kWhole>(load<kWhole, L>(x(i), count), k);
      if (of_v) found.v_sum += hash_row<kWhole>(load<kWhole, L>(v(i), count), k);
    }
    found.hashes_x = of_x;
    found.hashes_v = of_v;
  }

  // A tensor without a gradient in this step: only its accumulators keep pace.
  template <bool kWhole>
  RH_INLINE void idle(bool forward, Found& found) const {
    Vector<Accumulator, L> s = load_accumulators();
    for (int k = 0; k < kWeightsPerLane; ++k) forward ? spill(s, k) : refill(s, kWeightsPerLane - 1 - k);
    store_accumulators(s);
    hash_at_rest<kWhole>(forward, true, found);
  }

  template <bool kWhole>
  RH_INLINE void step(Found& found) const {
    Checks<Integer> checks{0, 0, 0, 0};
    Vector<Accumulator, L> s = load_accumulators();
#pragma unroll 1
    for (int above = 0; above < kWeightsPerLane; above += kAhead) {
      Vector<Integer, L> xs[kAhead], vs[kAhead];
      Vector<T, L> gradients[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const int i = start<kWhole>(above + r), count = valid<kWhole>(above + r);
        xs[r] = load<kWhole, L>(x(i), count);
        vs[r] = load<kWhole, L>(v(i), count);
        gradients[r] = load<kWhole, L>(gradient(i), count);
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const int k = above + r, i = start<kWhole>(k), count = valid<kWhole>(k);
        spill(s, k);
        const Vector<Real, L> lr = rates<kWhole>(k);
        Vector<T, L> seen;
#pragma unroll
        for (int j = 0; j < L; ++j)
          if (kWhole || j < count) {
            step_velocity<State>(xs[r].at[j], vs[r].at[j], s.at[j], static_cast<Real>(widen(gradients[r].at[j])), coefficients,
                                 shared.n, shared.d, checks);
            step_weight<State>(xs[r].at[j], weight_change<State>(vs[r].at[j], lr.at[j]), checks);
            seen.at[j] = visible<State, T>(xs[r].at[j]);
          }
        store<kWhole, L>(x(i), xs[r], count);
        store<kWhole, L>(v(i), vs[r], count);
        store<kWhole, L>(weight(i), seen, count);
        if (shared.hash) {
          found.x_sum += hash_row<kWhole>(xs[r], k);
          found.v_sum += hash_row<kWhole>(vs[r], k);
        }
      }
    }
    store_accumulators(s);
    found.flags = flags_of<State>(checks);
    found.hashes_x = found.hashes_v = true;
  }

  // `beside` comes along, see launch.h: it reads ahead, too, and gets each row's velocities and learning rates.
  template <bool kWhole, class Beside>
  RH_INLINE void move_weights(bool back, Found& found, Beside& beside) const {
#pragma unroll 1
    for (int above = 0; above < kWeightsPerLane; above += kAhead) {
      Vector<Integer, L> xs[kAhead], vs[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const int i = start<kWhole>(above + r), count = valid<kWhole>(above + r);
        xs[r] = load<kWhole, L>(x(i), count);
        vs[r] = load<kWhole, L>(v(i), count);
        beside.template ahead<kWhole>(*this, r, above + r);
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const int k = above + r, i = start<kWhole>(k), count = valid<kWhole>(k);
        const Vector<Real, L> lr = rates<kWhole>(k);
        Vector<T, L> seen;
#pragma unroll
        for (int j = 0; j < L; ++j) {
          const Integer change = weight_change<State>(vs[r].at[j], lr.at[j]);
          xs[r].at[j] = back ? wrapping_add(xs[r].at[j], change) : wrapping_subtract(xs[r].at[j], change);
          seen.at[j] = visible<State, T>(xs[r].at[j]);
        }
        store<kWhole, L>(x(i), xs[r], count);
        store<kWhole, L>(weight(i), seen, count);
        beside.template weights<kWhole>(*this, r, k, vs[r], lr);
        if (shared.hash) found.x_sum += hash_row<kWhole>(xs[r], k);
      }
    }
    found.hashes_x = true;
  }

  // The second half of undoing, into registers: whether the block is refused is known when all of its threads are here.
  struct Undone {
    Vector<Integer, L> v[kWeightsPerLane];
    Vector<Accumulator, L> s;
    bool refused = false;
  };
  template <bool kWhole>
  RH_INLINE void undo_velocity(Undone& undone, Found& found) const {
    Checks<Integer> checks{0, 0, 0, 0};
    undone.s = load_accumulators();
    const bool decays = coefficients.decay != 0;
#pragma unroll
    for (int k = kWeightsPerLane - 1; k >= 0; --k) {
      const int i = start<kWhole>(k), count = valid<kWhole>(k);
      undone.v[k] = load<kWhole, L>(v(i), count);
      const Vector<T, L> gradients = load<kWhole, L>(gradient(i), count);
      Vector<Integer, L> xs{};
      if (decays) xs = load<kWhole, L>(x(i), count);
#pragma unroll
      for (int j = 0; j < L; ++j)
        if (kWhole || j < count) {
          Integer place;
          rh::undo_velocity<true, State>(xs.at[j], undone.v[k].at[j], undone.s.at[j], place,
                                         static_cast<Real>(widen(gradients.at[j])), coefficients, shared.n, shared.d,
                                         shared.contracted, checks);
          undone.refused |= static_cast<Accumulator>(place) >= shared.contracted.count;
        }
      refill(undone.s, k);
    }
    found.flags = flags_of<State>(checks);
  }
  template <bool kWhole>
  RH_INLINE void keep(const Undone& undone, Found& found) const {
#pragma unroll
    for (int k = 0; k < kWeightsPerLane; ++k) {
      store<kWhole, L>(v(start<kWhole>(k)), undone.v[k], valid<kWhole>(k));
      if (shared.hash) found.v_sum += hash_row<kWhole>(undone.v[k], k);
    }
    store_accumulators(undone.s);
    found.hashes_v = true;
  }
};

}  // namespace rh
