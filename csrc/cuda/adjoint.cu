// The undoing of a step together with its adjoint: what csrc/cpu/adjoint.h computes, in its order.
#include "../core/sums.h"
#include "launch.h"

namespace rh {
namespace {

constexpr int kSums = kSumsBefore > kSumsAfter ? kSumsBefore : kSumsAfter;

struct AdjointShared : Shared {
  void* weights;  // vectors, laid out as the state
  void* states[K];
  double* partials[kSums];  // one per block of the call; null: not wanted
  double* sums[kSums];      // one per tensor
  // What the wanted sums are of.
  bool reads_state[K], reads_weight, reads_gradient;
  bool moved;  // the integers, by an earlier call
};

struct AdjointEntry : Entry {
  const void* product;
  void* direction;
  double carries[K];
  double weight_decay;
  double sigmas[K];  // of the states: after the step in the first half, before it in the second
  bool decays;       // see the rule
  bool has_work;
};

__device__ __forceinline__ double add_over_group(double sum) {
#pragma unroll
  for (int offset = 1; offset < kGroup; offset *= 2) sum += __shfl_xor_sync(group_mask(), sum, offset);
  return sum;
}

// R: of the vectors.
template <class R>
struct StepAdjoint {
  using Shared = AdjointShared;
  using Entry = AdjointEntry;
  static constexpr int kResident = (sizeof(R) * L > 8 ? 5 : 6) - K;

  const Shared& shared;
  const Entry& entry;
  Vector<R> aw, az[K], product;
  double sums[kSums][L] = {};

  __device__ __forceinline__ StepAdjoint(const Shared& of, const Entry& e) : shared(of), entry(e) {}

  __device__ __forceinline__ bool moves() const { return !shared.moved; }
  __device__ __forceinline__ R* weights() const { return static_cast<R*>(shared.weights); }
  __device__ __forceinline__ R* states(int k) const { return static_cast<R*>(shared.states[k]); }

  template <class Part>
  __device__ __forceinline__ void load(const Thread& thread, const Part& part) {
    if (!entry.has_work) return;
    aw = part.load(weights(), thread.position());
#pragma unroll
    for (int k = 0; k < K; ++k) az[k] = part.load(states(k), thread.position());
    if (entry.product) product = read<R>(entry.type, entry.product, thread.begin, part);
  }

  // One weight: its numbers, the values of its states, and what it adds to the sums.
  struct Lane {
    R n[N];
    double wide[N], values[K], terms[kSums] = {};
  };
  __device__ __forceinline__ Lane lane(int j, const StateVectors& z, const Vector<Real> (&numbers)[N]) const {
    Lane lane;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      lane.wide[i] = entry.elements >> i & 1 ? static_cast<double>(numbers[i].at[j]) : entry.numbers[i].value;
      lane.n[i] = static_cast<R>(lane.wide[i]);
    }
    for_states([&](auto k) {
      const auto own = get<k>(z).at[j];
      // Squares that are 0 stay 0: their root has no share in the derivative.
      lane.values[k] = shared.reads_state[k] ? static_cast<double>(own) * entry.sigmas[k] : 0.0;
    });
    return lane;
  }
  template <int count>
  __device__ __forceinline__ void add(const Lane& lane, int j) {
#pragma unroll
    for (int s = 0; s < count; ++s)
      if (shared.partials[s]) sums[s][j] += lane.terms[s];
  }

  template <class Part>
  __device__ __forceinline__ void before_gradient(const Thread& thread, const Part& part, const Vector<Integer>& x,
                                                  const StateVectors& z, const Vector<Real> (&numbers)[N]) {
#pragma unroll
    for (int j = 0; j < L; ++j)
      if (j < part.count) {
        Lane now = lane(j, z, numbers);
        R own[K];
        if (entry.product) aw.at[j] = aw.at[j] + product.at[j];
#pragma unroll
        for (int k = 0; k < K; ++k) own[k] = static_cast<R>(entry.carries[k] * static_cast<double>(az[k].at[j]));
        Rule::before(aw.at[j], own, now.values, now.n, now.wide, now.terms);
        if (Rule::kDecaysWeight) {
          now.terms[kSumsBefore - 1] = static_cast<double>(aw.at[j]) * (static_cast<double>(x.at[j]) * entry.sigma_before);
          aw.at[j] = static_cast<R>(entry.weight_decay * static_cast<double>(aw.at[j]));
        }
#pragma unroll
        for (int k = 0; k < K; ++k) az[k].at[j] = own[k];
        add<kSumsBefore>(now, j);
      }
    if (entry.product || Rule::kDecaysWeight) part.store(weights(), thread.position(), aw);
#pragma unroll
    for (int k = 0; k < K; ++k) part.store(states(k), thread.position(), az[k]);
  }

  template <class Part>
  __device__ __forceinline__ void with_gradient(const Thread& thread, const Part& part, const StateVectors& z,
                                                const Vector<Real> (&numbers)[N]) {
    if (!entry.has_work) return;
    Vector<Integer> x{};
    Vector<double> g{};
    Vector<R> direction;
    if (shared.reads_weight) x = thread.load_slot<K>(part);
    if (shared.reads_gradient) g = read<double>(entry.type, entry.gradient, thread.begin, part);
#pragma unroll
    for (int j = 0; j < L; ++j)
      if (j < part.count) {
        Lane now = lane(j, z, numbers);
        R own[K];
#pragma unroll
        for (int k = 0; k < K; ++k) own[k] = az[k].at[j];
        const double w = static_cast<double>(x.at[j]) * entry.sigma_before;
        direction.at[j] = Rule::after(aw.at[j], own, g.at[j], w, now.values, now.n, now.wide, now.terms);
        add<kSumsAfter>(now, j);
      }
    if (entry.decays) part.store(weights(), thread.position(), aw);
    if (entry.direction) part.store(static_cast<R*>(entry.direction), thread.begin, direction);
  }

  // The block's sums: within a thread neighbouring lanes first, then neighbouring threads.
  __device__ __forceinline__ void finish(const Thread& thread) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      if (!shared.partials[s]) continue;
#pragma unroll
      for (int left = L / 2; left > 0; left /= 2)
#pragma unroll
        for (int j = 0; j < left; ++j) sums[s][j] = sums[s][2 * j] + sums[s][2 * j + 1];
      const double sum = add_over_group(sums[s][0]);
      if (thread.first == 0) shared.partials[s][thread.block()] = sum;
    }
  }

  // Tensors without elements have no block that would give them a sum.
  static cudaError_t begin(const CudaMove& move) {
    cudaError_t status = cudaSuccess;
    for (int s = 0; s < kSums; ++s)
      for (size_t i = 0; move.sums[s] && i < move.slices.size() && status == cudaSuccess; ++i)
        if (move.slices[i].size == 0)
          status = cudaMemsetAsync(move.sums[s] + i, 0, sizeof(double), static_cast<cudaStream_t>(move.stream));
    return status;
  }
  template <class Table>
  static cudaError_t end(const Table& table, cudaStream_t stream);
};

// The sums of a table's tensors from those of their blocks, as sum_of_blocks adds them: a CUDA block for each of both.
template <int bytes>
__global__ void __launch_bounds__(kSumLanes)
    add_partials(const __grid_constant__ Table<AdjointShared, AdjointEntry, bytes> table) {
  __shared__ double lanes[kSumLanes];
  const int which = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int kind = which / table.shared.entries;
  const AdjointEntry& entry = table.entries[which % table.shared.entries];
  if (!table.shared.sums[kind]) return;
  const int64_t count = block_count(entry.size);
  const double* partials = table.shared.partials[kind] + entry.block_position;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = lane; i < count; i += kSumLanes) sum += partials[i];
  lanes[lane] = sum;
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] += lanes[lane + half];
  }
  if (lane == 0) table.shared.sums[kind][entry.index] = lanes[0];
}

template <class R>
template <class Table>
cudaError_t StepAdjoint<R>::end(const Table& table, cudaStream_t stream) {
  int kinds = kSums;
  while (kinds > 0 && !table.shared.sums[kinds - 1]) --kinds;
  if (kinds == 0) return cudaSuccess;
  constexpr int bytes = sizeof(Table) > kSmallTable ? kLargeTable : kSmallTable;
  void* arguments[] = {const_cast<Table*>(&table)};
  const auto grid = static_cast<unsigned>(kinds * table.shared.entries);
  return cudaLaunchKernel(add_partials<bytes>, dim3(grid), dim3(kSumLanes), arguments, 0, stream);
}

AdjointShared adjoint_shared_of(const CudaMove& move) {
  AdjointShared shared{};
  static_cast<Shared&>(shared) = shared_of(move);
  shared.moved = move.moved;
  shared.hash = move.hash && !move.moved;  // a hash is of what moves
  if (move.slices.empty()) return shared;
  const AdjointSlice& first = move.adjoint[0];
  const bool before = move.phase == Phase::undo_weights;
  shared.weights = first.weight;
  for (int k = 0; k < K; ++k) shared.states[k] = first.states[k];
  for (int k = 0; k < K; ++k) shared.reads_state[k] = before && Rule::kBeforeReadsStates;
  shared.reads_gradient = !before && Rule::kAfterReadsGradient;
  for (const Slice& slice : move.slices) shared.reads_weight |= shared.reads_gradient && Rule::looks_at_weight(slice);
  for (int s = 0; s < (before ? kSumsBefore : kSumsAfter); ++s) {
    shared.partials[s] = first.partials[s];
    shared.sums[s] = move.sums[s];
    if (!shared.sums[s]) continue;
    for (int k = 0; k < K && s < (before ? int{Rule::kSumsBefore} : kSumsAfter); ++k)
      shared.reads_state[k] |= before ? Rule::sum_before_reads_state(s, k) : Rule::sum_after_reads_state(s, k);
    if (before || s >= Rule::kSumsAfter) continue;
    shared.reads_weight |= Rule::sum_after_reads_weight(s);
    shared.reads_gradient |= Rule::sum_after_reads_gradient(s);
  }
  return shared;
}

AdjointEntry adjoint_entry_of(const CudaMove& move, const AdjointShared& shared, size_t i) {
  const Slice& slice = move.slices[i];
  const AdjointSlice& own = move.adjoint[i];
  AdjointEntry entry{};
  static_cast<Entry&>(entry) = entry_of(slice, i, move.first_block[i]);
  entry.product = own.product;
  entry.direction = own.direction;
  for (int k = 0; k < K; ++k) {
    entry.carries[k] = own.carries[k];
    entry.sigmas[k] = move.phase == Phase::undo_weights ? slice.states[k].sigma : own.sigma_before[k];
  }
  entry.weight_decay = own.weight_decay;
  entry.decays = Rule::decays(slice);
  entry.has_work = move.phase == Phase::undo_weights || own.direction || entry.decays;
  for (const double* partials : shared.partials) entry.has_work |= partials != nullptr;
  bool vectors = entry.vectors && at_multiple(own.weight, 16) && at_multiple(own.product, bytes_of(slice.type) * L) &&
                 at_multiple(own.direction, 16);
  for (int k = 0; k < K; ++k) vectors = vectors && at_multiple(own.states[k], 16);
  entry.vectors = vectors;
  return entry;
}

template <class R>
cudaError_t move_with(const CudaMove& move, const AdjointShared& shared, const std::vector<AdjointEntry>& entries) {
  return move.phase == Phase::undo_weights ? move_all<Phase::undo_weights, StepAdjoint<R>>(move, shared, entries)
                                           : move_all<Phase::undo_states, StepAdjoint<R>>(move, shared, entries);
}

const char* move_with_adjoint(const CudaMove& move) {
  const AdjointShared shared = adjoint_shared_of(move);
  std::vector<AdjointEntry> entries;
  for (size_t i = 0; i < move.slices.size(); ++i) {
    if (move.slices[i].size == 0) continue;
    const AdjointEntry entry = adjoint_entry_of(move, shared, i);
    if (entry.has_work || !move.moved) entries.push_back(entry);
  }
  // All weights are of double, or none is.
  const bool wide = !move.slices.empty() && move.slices[0].type == ScalarType::float64;
  const cudaError_t status = wide ? move_with<double>(move, shared, entries) : move_with<float>(move, shared, entries);
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

const CudaKernels kernels = {Rule::kName, Layout::bits, true,         Rule::kStates,       Rule::kNumbers,
                             kSumsBefore, kSumsAfter,   Rule::kPower, Rule::kDecaysWeight, move_with_adjoint};
const CudaRegistration registration(&kernels);

}  // namespace
}  // namespace rh
