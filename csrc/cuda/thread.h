// What one thread does: the phases of csrc/cpu/worker.h, on a few neighbouring weights of each row of one block.
//
// A thread holds as many weights as make 16 bytes of state: 2 of 64 bits, 4 of 32. The threads of a group read neighbouring 16
// bytes: a row of kRow weights, and the block row by row. So a thread adds the lanes of a block's sums that it holds in their
// order. Ragged blocks, and tensors that stand askew in memory, go element by element.
//
// The phases of undoing take the step's adjoint along, row by row; see launch.h for one that does nothing.
#pragma once

#include "../core/hash.h"
#include "../core/planes.h"
#include "vector.h"

namespace rh {
namespace {

// What a thread has found out about its part of a block.
struct Found {
  uint64_t sums[kSlots] = {};                 // of hash_word
  uint64_t used[kSlots] = {};                 // used_bits
  bool of_states = false, of_weight = false;  // which sums there are
  bool bad_increment = false, bad_change = false, foreign = false;
};

template <int k>
using StateInteger = SlotInteger<k>;
template <int k>
using StateVector = Vector<SlotInteger<k>>;
using StateVectors = PerState<StateVector>;

struct Thread {
  const Shared& shared;
  const Entry& entry;
  int64_t begin;  // of the block, in the tensor
  int size;       // of the block
  int first;      // of the thread's weights in each row

  __device__ __forceinline__ Thread(const Shared& of, const Entry& e, int64_t block, int member)
      : shared(of),
        entry(e),
        begin((block - e.first_block) * kBlockSize),
        size(e.size - begin < kBlockSize ? static_cast<int>(e.size - begin) : kBlockSize),
        first(member * L) {}

  __device__ __forceinline__ int64_t position() const { return entry.position + begin; }
  __device__ __forceinline__ int64_t block() const { return entry.block_position + begin / kBlockSize; }
  __device__ __forceinline__ uint8_t* skipped() const { return shared.skipped ? shared.skipped + block() : nullptr; }

  __device__ __forceinline__ bool whole() const { return size == kBlockSize && entry.vectors; }
  template <bool kWhole>
  __device__ __forceinline__ Part<kWhole> row_part(int row) const {
    const int i = row + first, left = size - i;
    return {i, kWhole || left >= L ? L : left < 0 ? 0 : left};
  }

  template <class Part>
  __device__ __forceinline__ void load_numbers(const Part& part, Vector<Real> (&numbers)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (entry.elements >> j & 1) {
        numbers[j] = part.load(static_cast<const Real*>(entry.numbers[j].elements), begin);
      } else {
#pragma unroll
        for (int lane = 0; lane < L; ++lane) numbers[j].at[lane] = static_cast<Real>(entry.numbers[j].value);
      }
    }
  }

  template <int slot>
  __device__ __forceinline__ SlotInteger<slot>* integers() const {
    return static_cast<SlotInteger<slot>*>(shared.integers[slot]);
  }
  template <int slot, class Part>
  __device__ __forceinline__ Vector<SlotInteger<slot>> load_slot(const Part& part) const {
    return part.load(integers<slot>(), position());
  }
  template <class Part>
  __device__ __forceinline__ void load_states(const Part& part, StateVectors& z) const {
    for_states([&](auto k) { get<k>(z) = load_slot<k>(part); });
  }

  // All threads of a group come here together: eight weights share a byte of a plane, and so 8 / L threads.
  template <int slot, class Part>
  __device__ __forceinline__ void contract(const Part& part, Vector<SlotInteger<slot>>& z) const {
    const int shift = entry.shifts[slot];
    if (shift == 0) return;
    Vector<SlotInteger<slot>> bits;
#pragma unroll
    for (int j = 0; j < L; ++j) {
      bits.at[j] = 0;
      if (j < part.count) z.at[j] = rh::contract(z.at[j], shift, entry.slots[slot].centre, bits.at[j]);
    }
    uint8_t* to = entry.slots[slot].planes + (begin + part.i) / 8;
    const int64_t stride = plane_bytes(entry.size);
#pragma unroll 1
    for (int b = 0; b < shift; ++b, to += stride) {
      unsigned byte = 0;
#pragma unroll
      for (int j = 0; j < L; ++j) byte |= static_cast<unsigned>(bits.at[j] >> b & 1) << j;
      byte <<= part.i % 8;
#pragma unroll
      for (int offset = 1; offset < 8 / L; offset *= 2) byte |= __shfl_xor_sync(group_mask(), byte, offset);
      if (part.i % 8 == 0 && part.count > 0) *to = static_cast<uint8_t>(byte);
    }
  }
  template <int slot, class Part>
  __device__ __forceinline__ void expand(const Part& part, Vector<SlotInteger<slot>>& z) const {
    const int shift = entry.shifts[slot];
    if (shift == 0 || part.count == 0) return;
    Vector<SlotInteger<slot>> bits{};
    const uint8_t* from = entry.slots[slot].planes + (begin + part.i) / 8;
    const int64_t stride = plane_bytes(entry.size);
#pragma unroll 1
    for (int b = 0; b < shift; ++b, from += stride) {
      const unsigned byte = static_cast<unsigned>(*from) >> part.i % 8;
#pragma unroll
      for (int j = 0; j < L; ++j) bits.at[j] |= static_cast<SlotInteger<slot>>(byte >> j & 1) << b;
    }
#pragma unroll
    for (int j = 0; j < L; ++j)
      if (j < part.count) z.at[j] = rh::expand(z.at[j], shift, entry.slots[slot].centre, bits.at[j]);
  }

  // Of the thread's part of a row; the missing half of a tensor's last word is zero in it.
  template <class Part, class Own>
  __device__ __forceinline__ uint64_t hash_row(const Part& part, const Vector<Own>& z) const {
    uint64_t sum = 0;
    if constexpr (sizeof(Own) == 8) {
#pragma unroll
      for (int j = 0; j < L; ++j)
        if (j < part.count) sum += hash_word(as_unsigned(z.at[j]), part.i + j);
    } else {
#pragma unroll
      for (int j = 0; j < L; j += 2) {
        const uint64_t low = as_unsigned(z.at[j]), high = as_unsigned(z.at[j + 1]);
        if (j < part.count) sum += hash_word(low | high << 32, (part.i + j) / 2);
      }
    }
    return sum;
  }
  template <bool kWhole>
  __device__ __forceinline__ void rest(bool weight, bool states, Found& found) const {
    if (!shared.hash) return;
#pragma unroll 1
    for (int row = 0; row < size; row += kRow) {
      const auto part = row_part<kWhole>(row);
      for_states([&](auto k) {
        if (states) found.sums[k] += hash_row(part, load_slot<k>(part));
      });
      if (weight) found.sums[K] += hash_row(part, load_slot<K>(part));
    }
    found.of_weight = weight;
    found.of_states = states;
  }

  // What an integer of a state stands for.
  template <int k>
  __device__ __forceinline__ Real value(SlotInteger<k> z) const {
    if constexpr (kIsSquare<k>)
      return square_value<Real>(z, entry.slots[k].sigma);
    else
      return to_real(z) * static_cast<Real>(entry.slots[k].sigma);
  }
  template <int k>
  __device__ __forceinline__ SlotInteger<k> increment(Real g, Real w, const Real* values, const Real* n, Found& found) const {
    const Real x = entry.looks_at_weight ? Rule::increment<k, true>(g, w, values, n) : Rule::increment<k, false>(g, w, values, n);
    SlotInteger<k> q;
    if constexpr (kIsSquare<k>)
      q = square_quanta(x, entry.slots[k].inverse);
    else
      q = round_to_integer(x * static_cast<Real>(entry.slots[k].inverse));
    found.bad_increment |= bad_increment<SlotLayout<k>>(increment_word<SlotLayout<k>>(q));
    return q;
  }

  // One weight of a thread's vectors.
  struct Lane {
    PerState<StateInteger> z;
    Real values[K], n[N];
  };
  // What a step adds to each state.
  __device__ __forceinline__ void add_increments(Real g, Real w, Lane& lane, Found& found) const {
    for_states([&](auto k) {
      auto& z = get<k>(lane.z);
      z = wrapping_add(z, increment<k>(g, w, lane.values, lane.n, found));
      lane.values[k] = value<k>(z);
      found.used[k] |= as_unsigned(used_bits(z));
    });
  }
  // The inverse, from the last state to the first.
  __device__ __forceinline__ void subtract_increments(Real g, Real w, Lane& lane, Found& found) const {
    for_states([&](auto from_last) {
      constexpr int k = K - 1 - from_last;
      auto& z = get<k>(lane.z);
      z = wrapping_subtract(z, increment<k>(g, w, lane.values, lane.n, found));
      lane.values[k] = value<k>(z);
      const int shift = entry.shifts[k];
      const SlotInteger<k> lowest = kIsSquare<k> ? 0 : lowest_contracted<SlotLayout<k>>(shift);
      found.foreign |= foreign_word<SlotLayout<k>>(z, largest_contracted<SlotLayout<k>>(shift), lowest) < 0;
    });
  }

  __device__ __forceinline__ Lane lane(int j, const StateVectors& z, const Vector<Real> (&numbers)[N]) const {
    Lane lane;
    for_states([&](auto k) {
      get<k>(lane.z) = get<k>(z).at[j];
      lane.values[k] = value<k>(get<k>(lane.z));
    });
#pragma unroll
    for (int i = 0; i < N; ++i) lane.n[i] = numbers[i].at[j];
    return lane;
  }
  __device__ __forceinline__ Integer change(const Lane& lane) const {
    return round_to_integer(Rule::update(lane.values, lane.n) * static_cast<Real>(entry.slots[K].inverse));
  }
  __device__ __forceinline__ Real weight_before(Integer x) const { return to_real(x) * static_cast<Real>(entry.sigma_before); }

  // A step; without `moves_states`, its part of the weights.
  template <bool kWhole>
  __device__ __forceinline__ void step(bool moves_states, Found& found) const {
#pragma unroll 1
    for (int row = 0; row < size; row += kRow) {
      const auto part = row_part<kWhole>(row);
      StateVectors z;
      Vector<Integer> x = load_slot<K>(part);
      Vector<Real> numbers[N], g{};
      load_states(part, z);
      load_numbers(part, numbers);
      if (moves_states) g = read<Real>(entry.type, entry.gradient, begin, part);
      for_states([&](auto k) {
        if (moves_states) contract<k>(part, get<k>(z));
      });
      Vector<Integer> changes{};
#pragma unroll
      for (int j = 0; j < L; ++j)
        if (j < part.count) {
          Lane now = lane(j, z, numbers);
          if (moves_states) {
            add_increments(g.at[j], weight_before(x.at[j]), now, found);
            for_states([&](auto k) { get<k>(z).at[j] = get<k>(now.z); });
          }
          changes.at[j] = change(now);
          found.bad_change |= bad_increment<Layout>(increment_word<Layout>(changes.at[j]));
        }
      contract<K>(part, x);
#pragma unroll
      for (int j = 0; j < L; ++j) {
        x.at[j] = wrapping_subtract(x.at[j], changes.at[j]);
        found.used[K] |= as_unsigned(used_bits(x.at[j]));
      }
      part.store(integers<K>(), position(), x);
      show(entry.type, entry.weight, begin, part, x, entry.slots[K].sigma);
      if (shared.hash) found.sums[K] += hash_row(part, x);
      for_states([&](auto k) {
        if (moves_states) part.store(integers<k>(), position(), get<k>(z));
        if (shared.hash) found.sums[k] += hash_row(part, get<k>(z));
      });
    }
    found.of_weight = true;
    found.of_states = shared.moves_states;
  }

  template <bool kWhole, class Adjoint>
  __device__ __forceinline__ void undo_weights(Found& found, Adjoint& adjoint) const {
    const bool moves = adjoint.moves();
#pragma unroll 1
    for (int row = 0; row < size; row += kRow) {
      const auto part = row_part<kWhole>(row);
      StateVectors z;
      Vector<Integer> x = load_slot<K>(part);
      Vector<Real> numbers[N];
      load_states(part, z);
      load_numbers(part, numbers);
      adjoint.load(*this, part);
      if (moves) {
#pragma unroll
        for (int j = 0; j < L; ++j)
          if (j < part.count) x.at[j] = wrapping_add(x.at[j], change(lane(j, z, numbers)));
        expand<K>(part, x);
        part.store(integers<K>(), position(), x);
        show(entry.type, entry.weight, begin, part, x, entry.sigma_before);
      }
      adjoint.before_gradient(*this, part, x, z, numbers);
      if (shared.hash) found.sums[K] += hash_row(part, x);
    }
    found.of_weight = true;
  }

  // Returns false, with nothing changed, if the gradient cannot have led to these states and undoing would lose bits. To know it,
  // a block with planes is gone through twice, unless it has moved.
  template <bool kWhole, class Adjoint>
  __device__ __forceinline__ bool undo_states(Found& found, Adjoint& adjoint) const {
    const bool moves = adjoint.moves();
    bool shifts = false;
#pragma unroll
    for (int k = 0; k < K; ++k) shifts |= moves && entry.shifts[k] != 0;
#pragma unroll 1
    for (int pass = shifts ? 0 : 1; pass < 2; ++pass) {
      const bool writes = pass == 1;
#pragma unroll 1
      for (int row = 0; row < size; row += kRow) {
        const auto part = row_part<kWhole>(row);
        StateVectors z;
        Vector<Integer> x{};
        Vector<Real> numbers[N];
        load_states(part, z);
        if (moves && entry.looks_at_weight) x = load_slot<K>(part);
        load_numbers(part, numbers);
        if (writes) adjoint.load(*this, part);
        if (moves) {
          const Vector<Real> g = read<Real>(entry.type, entry.gradient, begin, part);
#pragma unroll
          for (int j = 0; j < L; ++j)
            if (j < part.count) {
              Lane now = lane(j, z, numbers);
              subtract_increments(g.at[j], weight_before(x.at[j]), now, found);
              for_states([&](auto k) { get<k>(z).at[j] = get<k>(now.z); });
            }
          if (!writes) continue;
          for_states([&](auto k) {
            expand<k>(part, get<k>(z));
            part.store(integers<k>(), position(), get<k>(z));
            if (shared.hash) found.sums[k] += hash_row(part, get<k>(z));
          });
        }
        adjoint.with_gradient(*this, part, z, numbers);
      }
      if (!writes && __any_sync(group_mask(), found.foreign)) return false;
    }
    found.of_states = true;
    return true;
  }
};

}  // namespace
}  // namespace rh
