// Rows of a block on the CPU: to memory, into a hash, ahead of need, and accumulators to and from planes. Included by
// kernels.cpp alone, and so compiled once per instruction set; see lanes.h.
#pragma once

#include <cstring>

#include "../core/hash.h"
#include "lanes.h"

namespace rh {
namespace {

// One row of weights on its way to memory. Streaming stores spare the read of the line that is overwritten
// whole; they pay when the weights do not fit the cache anyway.
void write_row(void* to, const void* from, int64_t bytes, bool stream) {
#if defined(__AVX512F__)
  if (stream && reinterpret_cast<uintptr_t>(to) % 64 == 0 && bytes % 64 == 0) {
    for (int64_t i = 0; i < bytes; i += 64)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + i),
                          _mm512_load_si512(static_cast<const char*>(from) + i));
    return;
  }
#elif defined(__x86_64__)
  if (stream && reinterpret_cast<uintptr_t>(to) % 16 == 0 && bytes % 16 == 0) {
    for (int64_t i = 0; i < bytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + i),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + i)));
    return;
  }
#endif
  memcpy(to, from, static_cast<size_t>(bytes));
}

// Sum of hash_word over one row; `first` is the row's first element in the block.
template <class Integer>
RH_INLINE uint64_t hash_row(const Integer* row, int count, int first) {
  constexpr int per_word = 8 / sizeof(Integer);
  int words = count / per_word, base = first / per_word;
  uint64_t sum = 0;
  int i = 0;
#if defined(__AVX512F__)
  if (words >= 8) {
    alignas(64) uint64_t start[8];
    for (int lane = 0; lane < 8; ++lane) start[lane] = hash_key(base + lane);
    __m512i key = _mm512_load_si512(start), total = _mm512_setzero_si512();
    const __m512i stride = _mm512_set1_epi64(static_cast<int64_t>(hash_key(8) - hash_key(0)));
    for (; i + 8 <= words; i += 8) {
      __m512i keyed = _mm512_add_epi64(_mm512_loadu_si512(row + i * per_word), key);
      total = _mm512_add_epi64(total, _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32)));
      key = _mm512_add_epi64(key, stride);
    }
    sum = static_cast<uint64_t>(_mm512_reduce_add_epi64(total));
  }
#elif defined(__AVX2__)
  if (words >= 4) {
    alignas(32) uint64_t four[4];
    for (int lane = 0; lane < 4; ++lane) four[lane] = hash_key(base + lane);
    __m256i key = _mm256_load_si256(reinterpret_cast<const __m256i*>(four)), total = _mm256_setzero_si256();
    const __m256i stride = _mm256_set1_epi64x(static_cast<int64_t>(hash_key(4) - hash_key(0)));
    for (; i + 4 <= words; i += 4) {
      const __m256i keyed = _mm256_add_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i * per_word)), key);
      total = _mm256_add_epi64(total, _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
      key = _mm256_add_epi64(key, stride);
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(four), total);
    sum = four[0] + four[1] + four[2] + four[3];
  }
#endif
  for (; i < words; ++i) {
    uint64_t word;
    memcpy(&word, row + i * per_word, 8);
    sum += hash_word(word, base + i);
  }
  if (count % per_word) {
    uint32_t last;
    memcpy(&last, row + count - 1, 4);
    sum += hash_word(last, base + words);
  }
  return sum;
}

// The same row of the next block: the hardware's prefetcher does not follow rows that are walked backwards, nor
// streams across pages. Reading past an array's end is harmless to a prefetch.
template <class T>
RH_INLINE void prefetch_next(const T* row) {
  const char* line = reinterpret_cast<const char*>(row + kBlockSize);
  for (int i = 0; i < static_cast<int>(sizeof(T)) * kLanesPerBlock; i += 64) __builtin_prefetch(line + i);
}

template <class Accumulator>
RH_INLINE void spill(Accumulator* s, int lanes, int bits, void* plane) {
  if (bits == 16)
    for (int j = 0; j < lanes; ++j) {
      static_cast<uint16_t*>(plane)[j] = static_cast<uint16_t>(s[j]);
      s[j] >>= 16;
    }
  else
    for (int j = 0; j < lanes; ++j) {
      static_cast<uint8_t*>(plane)[j] = static_cast<uint8_t>(s[j]);
      s[j] >>= 8;
    }
}

template <class Accumulator>
RH_INLINE void refill(Accumulator* s, int lanes, int bits, const void* plane) {
  if (bits == 16)
    for (int j = 0; j < lanes; ++j) s[j] = s[j] << 16 | static_cast<const uint16_t*>(plane)[j];
  else
    for (int j = 0; j < lanes; ++j) s[j] = s[j] << 8 | static_cast<const uint8_t*>(plane)[j];
}

}  // namespace
}  // namespace rh
