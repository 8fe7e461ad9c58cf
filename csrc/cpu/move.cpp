// Moves a bucket on the CPU: the kernels of the widest instruction set, over torch's threads.
#include "move.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "../arguments.h"
#include "../core/layout.h"

namespace rh {
namespace {

// From this many bytes of visible weights on, they are streamed past the cache: a cache would have dropped them before
// the next forward pass reads them.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Blocks per thread below which a thread costs more than it saves (16 k weights, about 10 us).
constexpr int64_t kGrain = 32;
// Blocks after which the adjoint follows: 4096 weights, whose state, gradients and vectors stay in a core's cache.
constexpr int64_t kBehind = 8;

void add_partials(const Adjoint& adjoint, const std::vector<int64_t>& first_block) {
  for (int kind = 0; kind < kInnerProducts; ++kind)
    for (size_t i = 0; adjoint.sums[kind] && i + 1 < first_block.size(); ++i)
      adjoint.sums[kind][i] = sum_of_blocks(adjoint.partials[kind] + first_block[i], first_block[i + 1] - first_block[i]);
}

}  // namespace

const Kernels*& active_kernels() {
  static const Kernels* active = available_kernels().front();
  return active;
}

void move_on_cpu(Phase phase, const Arguments& arguments, const Call& call) {
  auto* out = static_cast<int64_t*>(call.outcome.data_ptr());
  const Bucket& bucket = arguments.bucket;
  if (!takes_place(bucket, phase)) {
    std::fill_n(out, call.outcome.numel(), 0);
    return;
  }
  const std::vector<Slice>& slices = arguments.slices;
  const std::vector<int64_t>& first_block = arguments.first_block;
  int64_t bytes = 0;
  for (const Tensor& weight : call.weights) bytes += weight.numel() * static_cast<int64_t>(weight.element_size());
  const bool stream = bytes >= kStreamBytes;
  const Run kernel = arguments.wide ? active_kernels()->run64 : active_kernels()->run32;
  const AdjointArguments* adjoint = arguments.adjoint ? &*arguments.adjoint : nullptr;
  const RunAdjoint through = arguments.wide ? active_kernels()->adjoint64 : active_kernels()->adjoint32;
  std::atomic<uint64_t> hash{0};
  std::vector<std::atomic<uint32_t>> flags(slices.size());
  for (auto& word : flags) word.store(0, std::memory_order_relaxed);
  torch::stable::parallel_for(0, first_block.back(), kGrain, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    size_t i = static_cast<size_t>(std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_block[i + 1]);
      if (stop == begin) continue;  // a tensor without elements
      while (begin < stop) {
        const int64_t next = adjoint ? std::min(stop, begin + kBehind) : stop;
        const int64_t from = begin - first_block[i], to = next - first_block[i];
        const Outcome part = kernel(phase, bucket, slices[i], first_block[i], from, to, call.hash, stream);
        if (adjoint) through(phase, bucket, slices[i], adjoint->shared, adjoint->slices[i], first_block[i], from, to);
        sum += part.hash;
        if (part.flags) flags[i].fetch_or(part.flags, std::memory_order_relaxed);
        begin = next;
      }
    }
    hash.fetch_add(sum, std::memory_order_relaxed);
  });
  out[0] = static_cast<int64_t>(hash.load());
  for (size_t i = 0; i < slices.size(); ++i) out[1 + i] = flags[i].load();
  const bool refused = std::any_of(out + 1, out + 1 + slices.size(), [](int64_t word) { return word != 0; });
  if (refused && phase == Phase::step && bucket.first_refused)
    *bucket.first_refused = std::min(*bucket.first_refused, bucket.number);
  if (adjoint) add_partials(adjoint->shared, first_block);
}

}  // namespace rh
