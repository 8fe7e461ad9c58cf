// contract and expand of whole arrays: the integers in place, their low bits as planes.
#pragma once

#include <cstddef>

#include "../core/planes.h"

namespace rh {

// Bit 0 of each of eight bytes, as one byte: byte j's is bit j. The product moves bit 8j to 56 + j, and no two bits to one place.
RH_INLINE uint8_t gather_bits(uint64_t bytes) {
  return static_cast<uint8_t>(((bytes & 0x0101010101010101) * 0x0102040810204080) >> 56);
}

// The inverse: eight bytes of 0 or 1.
RH_INLINE uint64_t scatter_bits(uint8_t bits) {
  const uint64_t apart = bits * 0x0101010101010101 & 0x8040201008040201;
  return ((apart + 0x7f7f7f7f7f7f7f7f) >> 7) & 0x0101010101010101;
}

// Up to eight neighbours, and the byte of theirs in each of the planes.
template <class Integer>
RH_INLINE void contract_group(Integer* z, int count, int shift, int64_t centre, uint8_t* planes, ptrdiff_t stride) {
  Integer bits[8] = {};
  for (int j = 0; j < count; ++j) z[j] = contract(z[j], shift, centre, bits[j]);
  for (int first = 0; first < shift; first += 8) {
    uint64_t bytes = 0;
    for (int j = 0; j < 8; ++j) bytes |= static_cast<uint64_t>(bits[j] >> first & 0xff) << 8 * j;
    for (int b = first; b < shift && b < first + 8; ++b) planes[b * stride] = gather_bits(bytes >> (b - first));
  }
}

template <class Integer>
RH_INLINE void expand_group(Integer* z, int count, int shift, int64_t centre, const uint8_t* planes, ptrdiff_t stride) {
  Integer bits[8] = {};
  for (int first = 0; first < shift; first += 8) {
    uint64_t bytes = 0;
    for (int b = first; b < shift && b < first + 8; ++b) bytes |= scatter_bits(planes[b * stride]) << (b - first);
    for (int j = 0; j < 8; ++j) bits[j] |= static_cast<Integer>(bytes >> 8 * j & 0xff) << first;
  }
  for (int j = 0; j < count; ++j) z[j] = expand(z[j], shift, centre, bits[j]);
}

// shift planes of plane_bytes(size) bytes each, written whole.
template <class Integer>
void contract_array(Integer* z, int64_t size, int shift, int64_t centre, uint8_t* planes) {
  const ptrdiff_t stride = plane_bytes(size);
  const int64_t whole = size / 8;
  for (int64_t i = 0; i < whole; ++i) contract_group(z + 8 * i, 8, shift, centre, planes + i, stride);
  if (size % 8) contract_group(z + 8 * whole, static_cast<int>(size % 8), shift, centre, planes + whole, stride);
}

template <class Integer>
void expand_array(Integer* z, int64_t size, int shift, int64_t centre, const uint8_t* planes) {
  const ptrdiff_t stride = plane_bytes(size);
  const int64_t whole = size / 8;
  for (int64_t i = 0; i < whole; ++i) expand_group(z + 8 * i, 8, shift, centre, planes + i, stride);
  if (size % 8) expand_group(z + 8 * whole, static_cast<int>(size % 8), shift, centre, planes + whole, stride);
}

}  // namespace rh
