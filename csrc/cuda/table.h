// What one launch needs to know, in its kernel parameters.
//
// Why there and not in device memory: parameters travel with the launch, so nothing is allocated, nothing is copied in a
// step, no staging buffer must outlive the copy, and a captured CUDA graph holds its own. 4 KB of parameters are free of
// conditions; 32 KB need a driver of CUDA 12.1 and Volta or newer. More tensors than fit take several launches.
//
// Everything in this folder's headers is compiled once per rule and width of state, RH_STATE_BITS (see setup.py).
#pragma once

#include "../core/blocks.h"
#include "../core/slices.h"
#include "../rules/rule.h"

namespace rh {
namespace {

#if RH_STATE_BITS == 64
using Layout = Layout64;
#else
using Layout = Layout32;
#endif
using Integer = Layout::Integer;
using Real = Layout::Real;
constexpr int K = Rule::kStates, N = Rule::kNumbers;
constexpr int kSlots = K + 1;  // the weight is the last

// A value of each state, T<k>, and get<k> of it.
template <template <int> class T, int last = K - 1>
struct PerState : PerState<T, last - 1> {
  T<last> own;
};
template <template <int> class T>
struct PerState<T, -1> {};
template <int k, template <int> class T, int last>
RH_INLINE T<k>& get(PerState<T, last>& all) {
  return static_cast<PerState<T, k>&>(all).own;
}
template <int k, template <int> class T, int last>
RH_INLINE const T<k>& get(const PerState<T, last>& all) {
  return static_cast<const PerState<T, k>&>(all).own;
}

// A number as a type; std::integral_constant's conversion is the host's alone.
template <int number>
struct Constant {
  RH_INLINE constexpr operator int() const { return number; }
};
// Calls f with each state as a constant.
template <int k = 0, class F>
RH_INLINE void for_states(const F& f) {
  if constexpr (k < K) {
    f(Constant<k>{});
    for_states<k + 1>(f);
  }
}

// Of a slot, the weight's being K.
template <int slot>
struct SlotLayoutOf {
  using type = StateLayout<Layout, slot>;
};
template <>
struct SlotLayoutOf<K> {
  using type = Layout;
};
template <int slot>
using SlotLayout = typename SlotLayoutOf<slot>::type;
template <int slot>
using SlotInteger = typename SlotLayout<slot>::Integer;

struct SlotEntry {
  uint8_t* planes;
  double sigma, inverse;  // inverse: 1 / sigma
  int64_t centre;
};

// A number of the rule, or one per weight.
union Number {
  double value;
  const void* elements;
};

// A tensor: what a Slice holds, in as few bytes as will do, so that a launch takes many.
struct Entry {
  void* weight;
  const void* gradient;
  int64_t size;
  int64_t position;
  int64_t first_block;     // in the launch
  int64_t block_position;  // its first block among those of all tensors of the call
  double sigma_before;
  Number numbers[N];
  SlotEntry slots[kSlots];
  int32_t index;  // of the tensor in the call
  uint8_t shifts[kSlots];
  uint8_t elements;  // bit j: numbers[j] is one per weight
  uint8_t type : 2;  // ScalarType
  uint8_t active : 1;
  uint8_t looks_at_weight : 1;  // see the rule
  uint8_t vectors : 1;          // its arrays stand at multiples of 16 bytes (or of a vector, where that is shorter)
};
static_assert(N <= 8, "bits of Entry::elements");

// What all tensors of a launch share.
struct Shared {
  void* integers[kSlots];
  uint8_t* skipped;
  unsigned long long* outcome;
  Ticket ticket;
  int64_t blocks;  // of all entries
  int32_t entries;
  bool hash;
  bool moves_states;  // a step, not its part of the weights alone
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
__device__ __forceinline__ const auto& entry_of(const Table& table, int64_t block) {
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

}  // namespace
}  // namespace rh
