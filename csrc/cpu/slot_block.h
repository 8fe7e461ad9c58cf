// A block of one slot, whatever the rule: the hash of its integers, and their bits to and from planes. See lanes.h.
#pragma once

#include "../core/hash.h"
#include "../core/planes.h"
#include "../core/slices.h"
#include "lanes.h"

namespace rh {
namespace {

constexpr int kChunk = kStateAlignment;  // 16 weights: two bytes of a plane, a cache line of float weights

// The hash's sum over one slot of a block, in registers.
struct HashSum {
  static constexpr int kPerRegister = kRegisterBytes / 8;
  using Words = Lanes<uint64_t, kPerRegister>;
  Words total{};

  // The keys of the first register's words, and from one register to the next.
  static RH_INLINE Words first_keys() {
    Words keys;
    for (int j = 0; j < kPerRegister; ++j) keys[j] = hash_key(j);
    return keys;
  }
  static RH_INLINE Words next_keys(Words keys) { return keys + kKeyStride * kPerRegister; }
  template <class Integers>
  RH_INLINE void add(Integers z, Words keys) {
    total += multiply_halves(as_bits<Words>(z) + keys);
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

// The bits of a slot's integers in weights [begin, end) of `size`, to and from its planes.
template <class Layout>
void contract_block(const Slot& slot, int64_t size, int64_t begin, int64_t end) {
  using P = Pack<Layout>;
  using Integer = typename Layout::Integer;
  constexpr int W = P::width, kRegisters = kChunk / W;
  auto* first = static_cast<Integer*>(slot.integers);
  const int64_t stride = plane_bytes(size);
  for (int64_t i = begin; i < end; i += kChunk) {
    typename P::Integer t[kRegisters];
    for (int r = 0; r < kRegisters; ++r) t[r] = load<typename P::Integer>(first + i + r * W) + static_cast<Integer>(slot.centre);
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

template <class Layout>
void expand_block(const Slot& slot, int64_t size, int64_t begin, int64_t end) {
  using P = Pack<Layout>;
  using Integer = typename Layout::Integer;
  constexpr int W = P::width, kRegisters = kChunk / W;
  auto* first = static_cast<Integer*>(slot.integers);
  const int64_t stride = plane_bytes(size);
  for (int64_t i = begin; i < end; i += kChunk) {
    typename P::Integer t[kRegisters];
    for (int r = 0; r < kRegisters; ++r) t[r] = load<typename P::Integer>(first + i + r * W);
    for (int b = slot.shift - 1; b >= 0; --b) {
      const uint8_t* from = slot.planes + b * stride + i / 8;
      const unsigned bits = from[0] | (end - i > 8 ? from[1] << 8 : 0u);
      for (int r = 0; r < kRegisters; ++r) t[r] = t[r] + t[r] + P::from_bits(bits >> (r * W) & ((1u << W) - 1));
    }
    for (int r = 0; r < kRegisters; ++r) store(first + i + r * W, t[r] - static_cast<Integer>(slot.centre));
    if (end - i < kChunk) memset(first + end, 0, sizeof(Integer) * static_cast<size_t>(i + kChunk - end));
  }
}

}  // namespace
}  // namespace rh
