// Both codecs over whole arrays, for ctypes: compiled by bench/codecs/speed.py for the machine at hand.
//
// Rational: values in blocks of eight rows of 64, accumulators in rows of 64. spill[row] is 0, 8 or 16: bits that leave
// before the row's push, as uint16 to the planes, one plane of all accumulators after the other.
#include "../../csrc/numpy/arrays.h"
#include "rational.h"

namespace {

constexpr int kRows = 8, kLanes = 64;

template <class Integer, class Accumulator>
void rational_contract(Integer* v, Accumulator* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill, uint16_t* planes) {
  const rational::Divisor<Integer> numerator(n), denominator(d);
  for (int64_t block = 0; block < blocks; ++block, v += kRows * kLanes, s += kLanes) {
    uint16_t* plane = planes + block * kLanes;
    for (int row = 0; row < kRows; ++row) {
      if (spill[row]) {
        const auto mask = static_cast<Accumulator>((1 << spill[row]) - 1);
        for (int i = 0; i < kLanes; ++i) plane[i] = static_cast<uint16_t>(s[i] & mask);
        for (int i = 0; i < kLanes; ++i) s[i] >>= spill[row];
        plane += blocks * kLanes;
      }
      for (int i = 0; i < kLanes; ++i) rational::contract(v[row * kLanes + i], s[i], numerator, denominator);
    }
  }
}

template <class Integer, class Accumulator>
void rational_expand(Integer* v, Accumulator* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill,
                     const uint16_t* planes) {
  const rational::Divisor<Integer> numerator(n), denominator(d);
  int64_t spills = 0;
  for (int row = 0; row < kRows; ++row) spills += spill[row] != 0;
  for (int64_t block = 0; block < blocks; ++block, v += kRows * kLanes, s += kLanes) {
    const uint16_t* plane = planes + (spills * blocks + block) * kLanes;
    for (int row = kRows - 1; row >= 0; --row) {
      for (int i = 0; i < kLanes; ++i) rational::contract(v[row * kLanes + i], s[i], denominator, numerator);
      if (spill[row]) {
        plane -= blocks * kLanes;
        for (int i = 0; i < kLanes; ++i) s[i] = s[i] << spill[row] | plane[i];
      }
    }
  }
}

}  // namespace

extern "C" {

void rational_contract_64(int64_t* v, uint64_t* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill, uint16_t* planes) {
  rational_contract(v, s, blocks, n, d, spill, planes);
}
void rational_expand_64(int64_t* v, uint64_t* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill,
                        const uint16_t* planes) {
  rational_expand(v, s, blocks, n, d, spill, planes);
}
void planes_contract_64(int64_t* z, int64_t size, int32_t shift, int64_t centre, uint8_t* planes) {
  rh::contract_array(z, size, shift, centre, planes);
}
void planes_expand_64(int64_t* z, int64_t size, int32_t shift, int64_t centre, const uint8_t* planes) {
  rh::expand_array(z, size, shift, centre, planes);
}
void rational_contract_32(int32_t* v, uint32_t* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill, uint16_t* planes) {
  rational_contract(v, s, blocks, n, d, spill, planes);
}
void rational_expand_32(int32_t* v, uint32_t* s, int64_t blocks, int64_t n, int64_t d, const int32_t* spill,
                        const uint16_t* planes) {
  rational_expand(v, s, blocks, n, d, spill, planes);
}
void planes_contract_32(int32_t* z, int64_t size, int32_t shift, int64_t centre, uint8_t* planes) {
  rh::contract_array(z, size, shift, centre, planes);
}
void planes_expand_32(int32_t* z, int64_t size, int32_t shift, int64_t centre, const uint8_t* planes) {
  rh::expand_array(z, size, shift, centre, planes);
}

}  // extern "C"
