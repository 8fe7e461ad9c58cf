// The undoing of a step together with its adjoint.
#include "../core/adjoint.h"
#include "kernels.h"
#include "launch.h"

namespace rh {
namespace {

struct AdjointShared : Shared<State> {
  Adjoint adjoint;
};
struct AdjointEntry : Entry {
  AdjointSlice own;
};

__device__ __forceinline__ double add_over_group(double sum) {
  for (int offset = 1; offset < kGroup; offset *= 2) {
    const auto bits = static_cast<unsigned long long>(__double_as_longlong(sum));
    sum += __longlong_as_double(static_cast<long long>(__shfl_xor_sync(group_mask(), bits, offset)));
  }
  return sum;
}

struct WithAdjoint {
  using Shared = AdjointShared;
  using Entry = AdjointEntry;
  static constexpr bool kForward = false;
  static constexpr int kResident = 4;

  // A thread's part: the vectors' elements beside its lanes', and each lane's sums.
  template <class T>
  struct Beside {
    using Of = Thread<State, T>;
    using R = AdjointReal<T>;
    using Rates = Vector<typename State::Real, Of::L>;
    using Integers = Vector<typename State::Integer, Of::L>;
    static constexpr int L = Of::L;
    // Rows of the second half that are read before the first of them is written, as registers allow.
    static constexpr int kTogether = sizeof(R) * L > 16 ? 1 : Of::kAhead;

    const Shared& shared;
    const Entry& entry;
    Vector<R, L> aws[Of::kAhead], avs[Of::kAhead];
    double sums[kInnerProducts][L] = {};

    RH_INLINE Beside(const Shared& of, const Entry& e, const Of&) : shared(of), entry(e) {}

    RH_INLINE R* aw(const Of& thread, int i) const { return static_cast<R*>(shared.adjoint.weights) + thread.position() + i; }
    RH_INLINE R* av(const Of& thread, int i) const { return static_cast<R*>(shared.adjoint.velocities) + thread.position() + i; }
    RH_INLINE bool wants(int kind) const { return shared.adjoint.sums[kind] != nullptr; }

    template <bool kWhole>
    RH_INLINE void ahead(const Of& thread, int r, int k) {
      const int i = thread.template start<kWhole>(k), count = thread.template valid<kWhole>(k);
      aws[r] = load<kWhole, L>(aw(thread, i), count);
      avs[r] = load<kWhole, L>(av(thread, i), count);
    }

    template <bool kWhole>
    RH_INLINE void weights(const Of& thread, int r, int k, const Integers& v, const Rates& lr) {
      const int i = thread.template start<kWhole>(k), count = thread.template valid<kWhole>(k);
#pragma unroll
      for (int j = 0; j < L; ++j)
        if (kWhole || j < count) {
          if (wants(0)) sums[0][j] += static_cast<double>(aws[r].at[j]) * velocity_number<State>(v.at[j]);
          avs[r].at[j] = through_weight(avs[r].at[j], aws[r].at[j], rate_number<State, R>(lr.at[j]));
        }
      store<kWhole, L>(av(thread, i), avs[r], count);
    }

    template <bool kWhole>
    RH_INLINE void velocities(const Of& thread) {
      const ThroughVelocity<R> through(shared.adjoint, entry.own);
      const T* product = static_cast<const T*>(entry.own.product);
      const bool reads_x = wants(kByDecay) || wants(kByShare);
      // The thread's own velocities are read again, from a cache: in registers, a block's would not leave enough for the rest.
#pragma unroll 1
      for (int above = 0; above < kWeightsPerLane; above += kTogether) {
        Vector<T, L> products[kTogether], gradients[kTogether];
        Integers xs[kTogether], vs[kTogether];
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          const int i = thread.template start<kWhole>(above + r), count = thread.template valid<kWhole>(above + r);
          ahead<kWhole>(thread, r, above + r);
          if (product) products[r] = load<kWhole, L>(product + thread.begin + i, count);
          if (reads_x) xs[r] = load<kWhole, L>(thread.x(i), count);
          if (wants(kByMomentum)) vs[r] = load<kWhole, L>(thread.v(i), count);
          if (wants(kByShare)) gradients[r] = load<kWhole, L>(thread.gradient(i), count);
        }
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          const int i = thread.template start<kWhole>(above + r), count = thread.template valid<kWhole>(above + r);
#pragma unroll
          for (int j = 0; j < L; ++j)
            if (kWhole || j < count) {
              R& aw_j = aws[r].at[j];
              R& av_j = avs[r].at[j];
              if (wants(kByDecay))
                sums[kByDecay][j] += static_cast<double>(through.direction(av_j)) * weight_number<State>(xs[r].at[j]);
              if (wants(kByMomentum)) sums[kByMomentum][j] += static_cast<double>(av_j) * velocity_number<State>(vs[r].at[j]);
              if (wants(kByShare))
                sums[kByShare][j] += static_cast<double>(av_j) * through.total(static_cast<double>(widen(gradients[r].at[j])),
                                                                               weight_number<State>(xs[r].at[j]));
              if (product) aw_j = aw_j + static_cast<R>(widen(products[r].at[j]));
              aw_j = through.decayed(aw_j, av_j);
              av_j = through.velocity(av_j);
            }
          store<kWhole, L>(aw(thread, i), aws[r], count);
          store<kWhole, L>(av(thread, i), avs[r], count);
        }
      }
    }

    // The block's sums: within a thread neighbouring lanes first, then neighbouring threads.
    RH_INLINE void finish(const Of& thread) {
#pragma unroll
      for (int kind = 0; kind < kInnerProducts; ++kind) {
        if (!wants(kind)) continue;
#pragma unroll
        for (int left = L / 2; left > 0; left /= 2)
#pragma unroll
          for (int j = 0; j < left; ++j) sums[kind][j] = sums[kind][2 * j] + sums[kind][2 * j + 1];
        const double sum = add_over_group(sums[kind][0]);
        if (thread.first == 0) shared.adjoint.partials[kind][entry.first_skipped + thread.begin / kBlockSize] = sum;
      }
    }
  };

  // Tensors without elements have no block that would give them a sum.
  static cudaError_t begin(const Shared& shared, const std::vector<Slice>& slices, cudaStream_t stream) {
    cudaError_t status = cudaSuccess;
    for (double* sums : shared.adjoint.sums)
      for (size_t i = 0; sums && i < slices.size() && status == cudaSuccess; ++i)
        if (slices[i].size == 0) status = cudaMemsetAsync(sums + i, 0, sizeof(double), stream);
    return status;
  }
  template <class Table>
  static cudaError_t finish(const Table& table, cudaStream_t stream);

  static bool stands_on_vectors(const Shared& shared, const Entry& entry) {
    const size_t item = entry.slice.type == ScalarType::float64 ? 8 : entry.slice.type == ScalarType::float32 ? 4 : 2;
    return at_multiple(shared.adjoint.weights, 16) && at_multiple(shared.adjoint.velocities, 16) &&
           at_multiple(entry.own.product, item * Thread<State, float>::L);
  }
};

// The sums of a table's tensors from those of their blocks, as sum_of_blocks adds them: a CUDA block for each of both.
template <int bytes>
__global__ void __launch_bounds__(kSumLanes) add_partials(const __grid_constant__ TableOf<WithAdjoint, bytes> table) {
  __shared__ double lanes[kSumLanes];
  const Adjoint& adjoint = table.shared.adjoint;
  const int which = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const int kind = which / table.shared.entries;
  const AdjointEntry& entry = table.entries[which % table.shared.entries];
  if (!adjoint.sums[kind]) return;
  const int64_t count = block_count(entry.slice.size);
  const double* partials = adjoint.partials[kind] + entry.first_skipped;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = lane; i < count; i += kSumLanes) sum += partials[i];
  lanes[lane] = sum;
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] += lanes[lane + half];
  }
  if (lane == 0) adjoint.sums[kind][entry.index] = lanes[0];
}

template <class Table>
cudaError_t WithAdjoint::finish(const Table& table, cudaStream_t stream) {
  int kinds = kInnerProducts;
  while (kinds > 0 && !table.shared.adjoint.sums[kinds - 1]) --kinds;
  if (kinds == 0) return cudaSuccess;
  constexpr int bytes = sizeof(Table) > kSmallTable ? kLargeTable : kSmallTable;
  void* arguments[] = {const_cast<Table*>(&table)};
  return cudaLaunchKernel(add_partials<bytes>, dim3(static_cast<unsigned>(kinds * table.shared.entries)), dim3(kSumLanes),
                          arguments, 0, stream);
}

}  // namespace

#define RH_NAME_OF(bits) cuda_move_adjoint##bits
#define RH_NAME(bits) RH_NAME_OF(bits)
const char* RH_NAME(RH_STATE_BITS)(Phase phase, const Bucket& bucket, const std::vector<Slice>& slices, const Adjoint& adjoint,
                                   const std::vector<AdjointSlice>& own, bool hash, uint64_t* outcome, int device, void* stream) {
  const auto with_own = [&](const Entry& entry, size_t i) { return AdjointEntry{entry, own[i]}; };
  const AdjointShared shared{shared_of(phase, bucket, hash, outcome), adjoint};
  const cudaError_t status = move_all<WithAdjoint>(phase, shared, slices, with_own, device, static_cast<cudaStream_t>(stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace rh
