// What one launch needs to know, in its kernel parameters.
//
// Why there and not in device memory: parameters travel with the launch, so nothing is allocated, nothing is copied in a
// step, no staging buffer must outlive the copy, and a captured CUDA graph holds its own. 4 KB of parameters are free of
// conditions; 32 KB need a driver of CUDA 12.1 and Volta or newer. A table with more slices than fit takes several launches,
// a bucket with several dtypes one for each.
#pragma once

#include "../core/bucket.h"
#include "../core/sgd.h"

namespace rh {

struct Entry {
  Slice slice;
  int64_t first_block;    // in the launch
  int64_t first_skipped;  // its first block in Bucket::skipped
  int32_t index;          // of the slice in the bucket, for its word of flags
  bool vectors;           // its arrays stand at multiples of 16 bytes (or of a vector, where that is shorter)
};

// What all slices of a launch share.
template <class State>
struct Shared {
  Bucket bucket;
  Divisor<State> n, d;
  Contracted<State> contracted;
  unsigned long long* outcome;
  int64_t blocks;  // of all entries
  int32_t entries;
  bool hash, back;
};

// SharedType and EntryType: Shared and Entry, or what derives from them.
template <class SharedType, class EntryType, int bytes>
struct Table {
  static constexpr int capacity = (bytes - static_cast<int>(sizeof(SharedType))) / static_cast<int>(sizeof(EntryType));
  SharedType shared;
  EntryType entries[capacity];
};

constexpr int kSmallTable = 4096;   // bytes: what every GPU and driver takes
constexpr int kLargeTable = 32764;  // from CUDA 12.1 on

// The entry that holds `block`: first_block ascends, and no entry is empty.
template <class Table>
RH_INLINE const auto& entry_of(const Table& table, int64_t block) {
  int low = 0, high = table.shared.entries;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.entries[middle].first_block <= block)
      low = middle;
    else
      high = middle;
  }
  return table.entries[low];
}

}  // namespace rh
