// Blocks of neighbouring weights: the order in which hashes and sums are taken, and what a refused undoing leaves out.
#pragma once

#include "numeric.h"

namespace rh {

constexpr int kBlockSize = 512;
constexpr int kRow = 64;             // lanes of a block's sums: lane j adds the weights j, j + 64, ...
constexpr int kStateAlignment = 16;  // elements: every tensor's state begins where wide loads are fast

RH_INLINE int64_t block_count(int64_t size) { return (size + kBlockSize - 1) / kBlockSize; }
RH_INLINE int64_t state_size(int64_t size) { return (size + kStateAlignment - 1) / kStateAlignment * kStateAlignment; }

}  // namespace rh
