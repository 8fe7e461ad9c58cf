// The one order in which the inner products of a tensor are added, whatever threads, instruction set or device add them.
//
// Of a block: lane j of kRow adds the weights j, j + kRow, ... upwards, beginning with +0; then neighbouring lanes are added,
// then neighbouring pairs, and so on. Of a tensor: kSumLanes sums of every kSumLanes-th block, then halves.
#pragma once

#include "blocks.h"

namespace rh {

constexpr int kSumLanes = 512;  // enough for the threads of one CUDA block to hide memory; a power of two

// Of one block, a lane each; overwritten.
RH_INLINE double sum_of_lanes(double (&lanes)[kRow]) {
  for (int left = kRow / 2; left > 0; left /= 2)
    for (int i = 0; i < left; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  return lanes[0];
}

// Of one tensor.
RH_INLINE double sum_of_blocks(const double* partials, int64_t count) {
  double lanes[kSumLanes] = {};
  for (int64_t first = 0; first < count; first += kSumLanes) {
    const int here = count - first < kSumLanes ? static_cast<int>(count - first) : kSumLanes;
    for (int i = 0; i < here; ++i) lanes[i] += partials[first + i];
  }
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace rh
