// Kernels and their launches, as templates over the adjoint that undoing takes along: none in kernels.cu, the rule's in
// adjoint.cu.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "kernels.h"
#include "thread.h"

namespace rh {
namespace {

constexpr int kThreads = 128;  // per CUDA block
constexpr int kGroups = kThreads / kGroup;

// No adjoint; and what every adjoint gives. All threads of a group call all functions together.
struct NoAdjoint {
  using Shared = rh::Shared;
  using Entry = rh::Entry;
  // CUDA blocks that a multiprocessor must hold: what registers that leaves to a thread, none of them spilled, is measured by
  // bench/cuda_resources.py.
  static constexpr int kResident = 9 - 2 * K;

  __device__ __forceinline__ NoAdjoint(const Shared&, const Entry&) {}
  // Whether the integers are to move; else they have, and are only read.
  __device__ __forceinline__ static constexpr bool moves() { return true; }
  // Reads a part of a row whose weights or states are about to move.
  template <class Part>
  __device__ __forceinline__ void load(const Thread&, const Part&) {}
  // The two halves of the rule's adjoint: the weights have moved back; the states have.
  template <class Part>
  __device__ __forceinline__ void before_gradient(const Thread&, const Part&, const Vector<Integer>&, const StateVectors&,
                                                  const Vector<Real> (&)[N]) {}
  template <class Part>
  __device__ __forceinline__ void with_gradient(const Thread&, const Part&, const StateVectors&, const Vector<Real> (&)[N]) {}
  // After the last row.
  __device__ __forceinline__ void finish(const Thread&) {}

  // On the host, before all tables and after each.
  static cudaError_t begin(const CudaMove&) { return cudaSuccess; }
  template <class Table>
  static cudaError_t end(const Table&, cudaStream_t) {
    return cudaSuccess;
  }
};

template <class Adjoint, int bytes>
using TableOf = Table<typename Adjoint::Shared, typename Adjoint::Entry, bytes>;

// One thread's part of a phase.
template <Phase phase, bool kWhole, class Adjoint>
__device__ __forceinline__ void move(const Thread& thread, Found& found, Adjoint& adjoint) {
  uint8_t* skipped = thread.skipped();
  if (!thread.entry.active) {
    thread.rest<kWhole>(phase != Phase::undo_states, phase == Phase::undo_states || thread.shared.moves_states, found);
  } else if constexpr (phase == Phase::step) {
    thread.step<kWhole>(thread.shared.moves_states && !(skipped && *skipped), found);
    found.of_states = thread.shared.moves_states;
  } else if constexpr (phase == Phase::undo_weights) {
    thread.undo_weights<kWhole>(found, adjoint);
  } else {
    const bool moves = adjoint.moves();
    if (!moves && skipped && *skipped) return;  // as if it were refused again
    const bool done = thread.undo_states<kWhole>(found, adjoint);
    if (moves && skipped && thread.first == 0) *skipped = !done;
  }
}

// In all threads of a group, the OR of theirs.
template <class Word>
__device__ __forceinline__ Word any_of_group(Word word) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) word |= __shfl_xor_sync(group_mask(), word, offset);
  return word;
}

// Most words hold a block's bits already, and to read them costs less than an atomic operation.
__device__ __forceinline__ void add_bits(unsigned long long* word, unsigned long long bits) {
  if (bits & ~*static_cast<volatile unsigned long long*>(word)) atomicOr(word, bits);
}

template <Phase phase>
__device__ __forceinline__ void report(const Thread& thread, const Found& found) {
  unsigned long long* words = thread.shared.outcome + 1 + static_cast<int64_t>(thread.entry.index) * (1 + kSlots);
  unsigned flags = 0;
  if (found.bad_increment) flags |= kBadIncrement;
  if (found.bad_change) flags |= kBadChange;
  if (found.foreign) flags |= kForeignGradient;
  if constexpr (phase == Phase::step) {
    const auto note = [&](auto slot, unsigned overflow) {
      const uint64_t used = any_of_group(found.used[slot]);
      if (beyond_limit<SlotLayout<slot>>(static_cast<SlotInteger<slot>>(used))) flags |= overflow;
      if (thread.first == 0) add_bits(words + 1 + slot, used);
    };
    for_states([&](auto k) { note(k, kStateOverflow); });
    note(Constant<K>{}, kWeightOverflow);
  }
  flags = any_of_group(flags);
  if (flags == 0 || thread.first != 0) return;
  add_bits(words, flags);
  const Ticket& ticket = thread.shared.ticket;
  if (phase == Phase::step && thread.shared.moves_states && ticket.first)
    atomicMin(reinterpret_cast<long long*>(ticket.first), static_cast<long long>(ticket.number));
}

// Of the thread's block, in all threads of its group.
__device__ __forceinline__ uint64_t hash_of_block(const Thread& thread, const Found& found) {
  uint64_t hash = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!(slot == K ? found.of_weight : found.of_states)) continue;
    unsigned long long sum = found.sums[slot];
#pragma unroll
    for (int offset = kGroup / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(group_mask(), sum, offset);
    hash += hash_finish(sum, thread.position(), slot == K ? 0 : slot + 1);
  }
  return hash;
}

template <Phase phase, class Adjoint, int bytes>
__global__ void __launch_bounds__(kThreads, Adjoint::kResident) kernel(const __grid_constant__ TableOf<Adjoint, bytes> table) {
  __shared__ unsigned long long hashes[kGroups];
  const auto& shared = table.shared;
  const int group = static_cast<int>(threadIdx.x) / kGroup, member = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kGroups + group;
  // The same answer in all threads: what stands there changes to this step's number at most, while the step runs.
  if (!takes_place(shared.ticket, shared.moves_states ? Phase::step : phase == Phase::step ? Phase::redo_weights : phase)) return;
  unsigned long long hash = 0;
  if (block < shared.blocks) {
    const auto& entry = entry_of(table, block);
    const Thread thread(shared, entry, block, member);
    Adjoint adjoint(shared, entry);
    Found found;
    thread.whole() ? move<phase, true>(thread, found, adjoint) : move<phase, false>(thread, found, adjoint);
    adjoint.finish(thread);
    report<phase>(thread, found);
    if (shared.hash) hash = hash_of_block(thread, found);
  }
  if (!shared.hash) return;
  if (member == 0) hashes[group] = hash;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kGroups; ++i) hash += hashes[i];
    atomicAdd(shared.outcome, hash);
  }
}

// Launches the entries, as many at a time as a table holds.
template <Phase phase, class Adjoint, int bytes>
cudaError_t launch(const typename Adjoint::Shared& shared, const std::vector<typename Adjoint::Entry>& entries,
                   cudaStream_t stream) {
  using Filled = TableOf<Adjoint, bytes>;
  Filled table{shared, {}};
  for (size_t next = 0; next < entries.size();) {
    table.shared.blocks = 0;
    table.shared.entries = 0;
    for (; next < entries.size() && table.shared.entries < Filled::capacity; ++next) {
      auto& entry = table.entries[table.shared.entries++];
      entry = entries[next];
      entry.first_block = table.shared.blocks;
      table.shared.blocks += block_count(entry.size);
    }
    const auto grid = static_cast<unsigned>((table.shared.blocks + kGroups - 1) / kGroups);
    void* arguments[] = {&table};
    cudaError_t status = cudaLaunchKernel(kernel<phase, Adjoint, bytes>, dim3(grid), dim3(kThreads), arguments, 0, stream);
    if (status == cudaSuccess) status = Adjoint::end(table, stream);
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

bool at_multiple(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % (bytes < 16 ? bytes : 16) == 0; }

size_t bytes_of(ScalarType type) { return type == ScalarType::float64 ? 8 : type == ScalarType::float32 ? 4 : 2; }

// Whether whole blocks of the slice may be read and written as vectors. A block's size keeps the alignment.
bool stands_on_vectors(const Slice& slice) {
  bool stands = at_multiple(slice.weight, bytes_of(slice.type) * L) && at_multiple(slice.gradient, bytes_of(slice.type) * L) &&
                at_multiple(slice.own.integers, 16);
  for (int k = 0; k < K; ++k) stands = stands && at_multiple(slice.states[k].integers, 16);
  for (int j = 0; j < N; ++j) stands = stands && at_multiple(slice.elements[j], 16);
  return stands;
}

Entry entry_of(const Slice& slice, size_t index, int64_t block_position) {
  Entry entry{};
  entry.weight = slice.weight;
  entry.gradient = slice.gradient;
  entry.size = slice.size;
  entry.position = slice.position;
  entry.block_position = block_position;
  entry.sigma_before = slice.sigma_before;
  for (int j = 0; j < N; ++j) {
    if (slice.elements[j]) {
      entry.elements |= static_cast<uint8_t>(1 << j);
      entry.numbers[j].elements = slice.elements[j];
    } else {
      entry.numbers[j].value = slice.numbers[j];
    }
  }
  for (int i = 0; i < kSlots; ++i) {
    const Slot& slot = i == K ? slice.own : slice.states[i];
    entry.slots[i] = {slot.planes, slot.sigma, 1.0 / slot.sigma, slot.centre};
    entry.shifts[i] = static_cast<uint8_t>(slot.shift);
  }
  entry.index = static_cast<int32_t>(index);
  entry.type = static_cast<uint8_t>(slice.type) & 3;
  entry.active = slice.active;
  entry.looks_at_weight = slice.active && Rule::looks_at_weight(slice);
  entry.vectors = stands_on_vectors(slice);
  return entry;
}

Shared shared_of(const CudaMove& move) {
  Shared shared{};
  if (!move.slices.empty()) {  // the first of them begins where the memory of all begins
    const Slice& first = move.slices[0];
    for (int k = 0; k < K; ++k) shared.integers[k] = first.states[k].integers;
    shared.integers[K] = first.own.integers;
    shared.skipped = first.skipped;
  }
  shared.outcome = reinterpret_cast<unsigned long long*>(move.outcome);
  shared.ticket = move.ticket;
  shared.hash = move.hash;
  shared.moves_states = move.phase == Phase::step;
  return shared;
}

// `entries`: of the tensors that have elements.
template <Phase phase, class Adjoint>
cudaError_t move_all(const CudaMove& move, const typename Adjoint::Shared& shared,
                     const std::vector<typename Adjoint::Entry>& entries) {
  const DeviceGuard guard(move.device);
  if (guard.status != cudaSuccess) return guard.status;
  const auto stream = static_cast<cudaStream_t>(move.stream);
  cudaError_t status = cudaMemsetAsync(move.outcome, 0, (1 + move.slices.size() * (1 + kSlots)) * sizeof(uint64_t), stream);
  if (status == cudaSuccess) status = Adjoint::begin(move);
  if (status != cudaSuccess) return status;
  return entries.size() <= TableOf<Adjoint, kSmallTable>::capacity || !takes_large_tables()
             ? launch<phase, Adjoint, kSmallTable>(shared, entries, stream)
             : launch<phase, Adjoint, kLargeTable>(shared, entries, stream);
}

}  // namespace
}  // namespace rh
