// How a flat tensor of weights is laid out in lanes and blocks.
//
// One LANE is one accumulator of the information buffer and serves kWeightsPerLane weights (K in the design:
// more weights per lane, less accumulator memory per weight). Full BLOCKS hold kLanesPerBlock lanes: weight
// k of lane j stands at k * kLanesPerBlock + j, so SIMD lanes and GPU threads read neighbours, and a block
// is one short sequential stretch of memory whichever way its rows are walked. The last block of a tensor
// keeps the same form with fewer lanes, ceil(rest / kWeightsPerLane), so a bias of 10 costs 2 lanes.
//
// The order of weights is the order of the tensor: states are plain flat arrays, never shuffled.
#pragma once

#include "numeric.h"

namespace rh {

constexpr int kWeightsPerLane = 8;
constexpr int kLanesPerBlock = 64;
constexpr int kBlockSize = kWeightsPerLane * kLanesPerBlock;
// States of neighbouring tensors start on cache lines: 16 elements are 64 bytes of int32, 128 of int64.
constexpr int kStateAlignment = 16;

RH_INLINE int64_t block_count(int64_t size) { return (size + kBlockSize - 1) / kBlockSize; }

// Lanes of the block that starts at weight `begin` of a tensor of `size` weights.
RH_INLINE int lanes_in_block(int64_t size, int64_t begin) {
  int64_t rest = size - begin;
  return rest >= kBlockSize ? kLanesPerBlock : static_cast<int>((rest + kWeightsPerLane - 1) / kWeightsPerLane);
}

RH_INLINE int64_t lane_count(int64_t size) {
  int64_t full = size / kBlockSize, rest = size % kBlockSize;
  return full * kLanesPerBlock + (rest + kWeightsPerLane - 1) / kWeightsPerLane;
}

// Padded number of state elements of a tensor.
RH_INLINE int64_t state_size(int64_t size) { return (size + kStateAlignment - 1) / kStateAlignment * kStateAlignment; }

}  // namespace rh
