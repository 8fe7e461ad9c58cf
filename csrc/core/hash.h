// A 64-bit hash of integer state, equal on every device and for every number of threads.
//
// Inside a block: the NH family (Black et al., UMAC, 1999) over 64-bit words, sum of low32(w + key) * high32(w + key).
// A block's sum is mixed with its position and blocks are added, so order of evaluation does not matter.
// Chosen because it costs four SIMD operations per word and, unlike a plain sum, sees swaps and opposite errors.
// It guards against accidents (a closure that is not replayed, a flipped bit), not against an adversary.
#pragma once

#include "blocks.h"

namespace rh {

// SplitMix64's finaliser (Steele, Lea, Flood 2014).
RH_INLINE uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

constexpr uint64_t kKeyStride = 2 * 0x9e3779b97f4a7c15ull;

// The key of word i of a block. Any odd stride of large weight will do; equal words then hash differently.
RH_INLINE uint64_t hash_key(int i) { return 0x9e3779b97f4a7c15ull + kKeyStride * static_cast<uint64_t>(i); }

RH_INLINE uint64_t hash_word(uint64_t word, int i) {
  uint64_t keyed = word + hash_key(i);
  return (keyed & 0xffffffffull) * (keyed >> 32);
}

// `position` is the block's first element in the slot's memory. `stream` tells the slots: weights 0, states from 1 on.
RH_INLINE uint64_t hash_finish(uint64_t sum, int64_t position, int stream) {
  return mix(sum + mix(2 * static_cast<uint64_t>(position) + static_cast<uint64_t>(stream) + 1));
}

}  // namespace rh
