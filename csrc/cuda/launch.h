// Kernels and their launches, as templates over what they do beside moving the state. Compiled once per width of state, with
// RH_STATE_BITS (see setup.py): in kernels.cu alone, in adjoint.cu with the adjoint.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "thread.h"

namespace rh {
namespace {

#if RH_STATE_BITS == 64
using State = State64;
#else
using State = State32;
#endif
constexpr int kThreads = 128;  // per CUDA block
// The threads of one block of weights: a warp, or half of one.
constexpr int kGroup = Thread<State, float>::per_block;
constexpr int kGroups = kThreads / kGroup;
static_assert(kGroup <= 32 && 32 % kGroup == 0, "a group must not cross warps");

__device__ __forceinline__ unsigned group_mask() {
  return kGroup == 32 ? 0xffffffffu : ((1u << kGroup % 32) - 1) << (threadIdx.x % 32 / kGroup * kGroup);
}

// What a kernel does beside moving the state: nothing.
struct Alone {
  using Shared = rh::Shared<State>;
  using Entry = rh::Entry;
  static constexpr bool kForward = true;  // there are steps, not their undoing alone
  // CUDA blocks that a multiprocessor must hold, so that its registers suffice without spills: 128 per thread.
  static constexpr int kResident = 4;

  template <class T>
  struct Beside {
    using Of = Thread<State, T>;
    RH_INLINE Beside(const Shared&, const Entry&, const Of&) {}
    // Rows of weights that move: row k is number r of those that are read together.
    template <bool kWhole>
    RH_INLINE void ahead(const Of&, int, int) {}
    template <bool kWhole, class Velocities, class Rates>
    RH_INLINE void weights(const Of&, int, int, const Velocities&, const Rates&) {}
    // A block whose velocities have been undone, and kept.
    template <bool kWhole>
    RH_INLINE void velocities(const Of&) {}
    // All threads of a group come here, whatever happened to their block.
    RH_INLINE void finish(const Of&) {}
  };
  // Before all tables.
  static cudaError_t begin(const Shared&, const std::vector<Slice>&, cudaStream_t) { return cudaSuccess; }
  // After all blocks of a table.
  template <class Table>
  static cudaError_t finish(const Table&, cudaStream_t) {
    return cudaSuccess;
  }
  static bool stands_on_vectors(const Shared&, const Entry&) { return true; }
};

// One thread's part of a phase. All threads of a group come here with the same entry and block.
template <Phase phase, bool kWhole, class T, class Beside>
__device__ __forceinline__ void move(const Thread<State, T>& thread, Found& found, Beside& beside) {
  const bool active = thread.entry.slice.gradient != nullptr;
  if constexpr (phase == Phase::step) {
    const uint8_t* skipped = thread.skipped();
    if (!active)
      thread.template idle<kWhole>(true, found);
    else if (skipped && *skipped)
      thread.template move_weights<kWhole>(false, found, beside);
    else
      thread.template step<kWhole>(found);
  } else if constexpr (phase == Phase::undo_velocity) {
    if (!active) {
      thread.template idle<kWhole>(false, found);
      return;
    }
    typename Thread<State, T>::Undone undone;
    thread.template undo_velocity<kWhole>(undone, found);
    const bool refused = __any_sync(group_mask(), undone.refused);
    if (refused) {
      found.flags |= kForeignGradient;
    } else {
      thread.template keep<kWhole>(undone, found);
      beside.template velocities<kWhole>(thread);
    }
    uint8_t* skipped = thread.skipped();
    if (skipped && thread.first == 0) *skipped = refused;
  } else {
    if (active)
      thread.template move_weights<kWhole>(thread.shared.back, found, beside);
    else
      thread.template hash_at_rest<kWhole>(true, false, found);
  }
}

template <class Also, int bytes>
using TableOf = Table<typename Also::Shared, typename Also::Entry, bytes>;

template <Phase phase, class T, class Also, int bytes>
__global__ void __launch_bounds__(kThreads, Also::kResident) kernel(const __grid_constant__ TableOf<Also, bytes> table) {
  __shared__ unsigned long long sums[kGroups];
  const typename Also::Shared& shared = table.shared;
  const int group = threadIdx.x / kGroup, member = threadIdx.x % kGroup;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kGroups + group;
  // The same answer in all threads: what stands there changes to this step's number at most, while the step runs.
  if (!takes_place(shared.bucket, phase)) return;
  unsigned long long hash = 0;
  if (block < shared.blocks) {
    const typename Also::Entry& entry = entry_of(table, block);
    const Thread<State, T> thread(shared, entry, block, member);
    typename Also::template Beside<T> beside(shared, entry, thread);
    Found found;
    if (thread.whole())
      move<phase, true>(thread, found, beside);
    else
      move<phase, false>(thread, found, beside);
    beside.finish(thread);
    if (found.flags) {
      atomicOr(shared.outcome + 1 + entry.index, static_cast<unsigned long long>(found.flags));
      if (phase == Phase::step && shared.bucket.first_refused)
        atomicMin(reinterpret_cast<long long*>(shared.bucket.first_refused), static_cast<long long>(shared.bucket.number));
    }
    if (shared.hash) {
      for (int offset = kGroup / 2; offset > 0; offset /= 2) {
        found.x_sum += __shfl_xor_sync(group_mask(), static_cast<unsigned long long>(found.x_sum), offset);
        found.v_sum += __shfl_xor_sync(group_mask(), static_cast<unsigned long long>(found.v_sum), offset);
      }
      if (found.hashes_x) hash += hash_finish(found.x_sum, thread.position(), 0);
      if (found.hashes_v) hash += hash_finish(found.v_sum, thread.position(), 1);
    }
  }
  if (!shared.hash) return;
  if (member == 0) sums[group] = hash;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kGroups; ++i) hash += sums[i];
    atomicAdd(shared.outcome, hash);
  }
}

template <Phase phase, class T, class Also, int bytes>
cudaError_t launch(const TableOf<Also, bytes>& table, cudaStream_t stream) {
  const int64_t count = (table.shared.blocks + kGroups - 1) / kGroups;
  void* arguments[] = {const_cast<TableOf<Also, bytes>*>(&table)};
  return cudaLaunchKernel(kernel<phase, T, Also, bytes>, dim3(static_cast<unsigned>(count)), dim3(kThreads), arguments, 0,
                          stream);
}

template <Phase phase, class Also, int bytes>
cudaError_t launch(ScalarType type, const TableOf<Also, bytes>& table, cudaStream_t stream) {
  switch (type) {
    case ScalarType::float32:
      return launch<phase, float, Also, bytes>(table, stream);
    case ScalarType::float64:
      return launch<phase, double, Also, bytes>(table, stream);
    case ScalarType::bfloat16:
      return launch<phase, BFloat16, Also, bytes>(table, stream);
    default:
      return launch<phase, Float16, Also, bytes>(table, stream);
  }
}

template <class Also, int bytes>
cudaError_t launch(Phase phase, ScalarType type, const TableOf<Also, bytes>& table, cudaStream_t stream) {
  if constexpr (Also::kForward)
    if (phase == Phase::step) return launch<Phase::step, Also, bytes>(type, table, stream);
  return phase == Phase::undo_velocity ? launch<Phase::undo_velocity, Also, bytes>(type, table, stream)
                                       : launch<Phase::undo_weights, Also, bytes>(type, table, stream);
}

bool at_multiple(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % (bytes < 16 ? bytes : 16) == 0; }

// Whether whole blocks of the slice may be read and written as Thread does with kWhole. A block's size keeps the alignment.
bool stands_on_vectors(const Bucket& bucket, const Slice& slice) {
  constexpr size_t lanes = Thread<State, float>::L;
  const size_t item = slice.type == ScalarType::float64 ? 8 : slice.type == ScalarType::float32 ? 4 : 2;
  const int64_t state_bytes = slice.state_offset * static_cast<int64_t>(sizeof(State::Integer));
  return at_multiple(static_cast<char*>(bucket.weights) + state_bytes, 16) &&
         at_multiple(static_cast<char*>(bucket.velocities) + state_bytes, 16) && at_multiple(slice.weight, item * lanes) &&
         at_multiple(slice.gradient, item * lanes) && at_multiple(slice.lr_elements, 16);
}

// Launches the entries, as many at a time as a table holds.
template <class Also, int bytes>
cudaError_t launch_all(Phase phase, ScalarType type, const typename Also::Shared& shared,
                       const std::vector<typename Also::Entry>& entries, cudaStream_t stream) {
  using Filled = TableOf<Also, bytes>;
  Filled table{shared, {}};
  for (size_t next = 0; next < entries.size();) {
    table.shared.blocks = 0;
    table.shared.entries = 0;
    for (; next < entries.size() && table.shared.entries < Filled::capacity; ++next) {
      typename Also::Entry& entry = table.entries[table.shared.entries++];
      entry = entries[next];
      entry.first_block = table.shared.blocks;
      table.shared.blocks += block_count(entry.slice.size);
    }
    cudaError_t status = launch<Also, bytes>(phase, type, table, stream);
    if (status == cudaSuccess) status = Also::finish(table, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

bool takes_large_tables() {
  static const bool takes = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010;
  }();
  return takes;
}

// The current device, changed for a while.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status = cudaGetDevice(&before_);
    if (status == cudaSuccess && before_ != device) {
      status = cudaSetDevice(device);
      changed_ = status == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t status;

 private:
  int before_ = 0;
  bool changed_ = false;
};

Shared<State> shared_of(Phase phase, const Bucket& bucket, bool hash, uint64_t* outcome) {
  return {bucket,
          Divisor<State>(bucket.n),
          Divisor<State>(bucket.d),
          Contracted<State>(bucket.n, bucket.d),
          reinterpret_cast<unsigned long long*>(outcome),
          0,
          0,
          hash,
          phase == Phase::undo_weights};
}

// `make_entry`: the entry of a slice, from the part of it that all have, and its number.
template <class Also, class MakeEntry>
cudaError_t move_all(Phase phase, const typename Also::Shared& shared, const std::vector<Slice>& slices, MakeEntry make_entry,
                     int device, cudaStream_t stream) {
  const DeviceGuard guard(device);
  if (guard.status != cudaSuccess) return guard.status;
  cudaError_t status = cudaMemsetAsync(shared.outcome, 0, (1 + slices.size()) * sizeof(uint64_t), stream);
  if (status == cudaSuccess) status = Also::begin(shared, slices, stream);
  constexpr size_t few = TableOf<Also, kSmallTable>::capacity;
  for (ScalarType type : {ScalarType::float32, ScalarType::float64, ScalarType::bfloat16, ScalarType::float16}) {
    std::vector<typename Also::Entry> entries;
    int64_t blocks = 0;
    for (size_t i = 0; i < slices.size(); ++i) {
      if (slices[i].type == type && slices[i].size > 0) {
        typename Also::Entry entry = make_entry(Entry{slices[i], 0, blocks, static_cast<int32_t>(i), false}, i);
        entry.vectors = stands_on_vectors(shared.bucket, slices[i]) && Also::stands_on_vectors(shared, entry);
        entries.push_back(entry);
      }
      blocks += block_count(slices[i].size);
    }
    if (status != cudaSuccess || entries.empty()) continue;
    status = entries.size() <= few || !takes_large_tables() ? launch_all<Also, kSmallTable>(phase, type, shared, entries, stream)
                                                            : launch_all<Also, kLargeTable>(phase, type, shared, entries, stream);
  }
  return status;
}

}  // namespace

}  // namespace rh
