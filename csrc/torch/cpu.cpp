// The ops on the CPU: the kernels of the widest instruction set, over torch's threads.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>

#include "../core/sums.h"
#include "../cpu/kernels.h"
#include "arguments.h"

namespace rh {
namespace {

// From this many bytes of visible weights on, they are streamed past the cache: a cache would have dropped them before
// the next forward pass reads them.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Blocks per thread below which a thread costs more than it saves (16 k weights, about 10 us).
constexpr int64_t kGrain = 32;
// Blocks after which the adjoint follows: 4096 weights, whose state, gradients and vectors stay in a core's cache.
constexpr int64_t kBehind = 8;

const Kernels& kernels_of(const std::string& rule) {
  const Kernels* kernels = find_kernels(rule);
  STD_TORCH_CHECK(kernels != nullptr, "rule: there are no kernels for '", rule, "' in this build");
  return *kernels;
}

RuleShape shape_on_cpu(const std::string& rule) {
  const Kernels& kernels = kernels_of(rule);
  return {kernels.states, kernels.numbers, kernels.sums_before, kernels.sums_after, kernels.powers, kernels.decays_weight};
}

// Per tensor: flags, then what its slots use.
using Words = std::vector<std::atomic<uint64_t>>;

void note(Words& words, size_t first, const Outcome& part, int states) {
  if (part.flags) words[first].fetch_or(part.flags, std::memory_order_relaxed);
  for (int k = 0; k <= states; ++k) {
    const uint64_t used = part.used[k < states ? k : kMaxStates];
    if (used) words[first + 1 + static_cast<size_t>(k)].fetch_or(used, std::memory_order_relaxed);
  }
}

void move_on_cpu(Phase phase, const Arguments& arguments, const Call& call) {
  auto* out = static_cast<int64_t*>(call.outcome.data_ptr());
  if (!takes_place(arguments.ticket, phase)) {
    std::fill_n(out, call.outcome.numel(), 0);
    return;
  }
  const Kernels& kernels = kernels_of(call.rule);
  const std::vector<Slice>& slices = arguments.slices;
  const std::vector<int64_t>& first_block = arguments.first_block;
  const std::vector<AdjointSlice>& adjoint = arguments.adjoint;
  int64_t bytes = 0;
  for (const Tensor& weight : call.weights) bytes += weight.numel() * static_cast<int64_t>(weight.element_size());
  const bool stream = bytes >= kStreamBytes;
  const Move move = arguments.wide ? kernels.move64 : kernels.move32;
  const MoveAdjoint pull_back = arguments.wide ? kernels.adjoint64 : kernels.adjoint32;
  const auto row = static_cast<size_t>(kernels.states + 2);
  std::atomic<uint64_t> hash{0};
  Words words(slices.size() * row);
  for (auto& word : words) word.store(0, std::memory_order_relaxed);
  torch::stable::parallel_for(0, first_block.back(), kGrain, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    size_t i = static_cast<size_t>(std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin()) - 1;
    for (; begin < end; ++i) {
      const int64_t stop = std::min(end, first_block[i + 1]);
      while (begin < stop) {
        const int64_t next = adjoint.empty() ? stop : std::min(stop, begin + kBehind);
        const int64_t from = begin - first_block[i], to = next - first_block[i];
        const Outcome part = arguments.moved ? Outcome{} : move(phase, slices[i], from, to, call.hash, stream);
        if (!adjoint.empty()) pull_back(phase, slices[i], adjoint[i], from, to);
        sum += part.hash;
        note(words, i * row, part, kernels.states);
        begin = next;
      }
    }
    hash.fetch_add(sum, std::memory_order_relaxed);
  });
  out[0] = static_cast<int64_t>(hash.load());
  bool refused = false;
  for (size_t i = 0; i < words.size(); ++i) {
    out[1 + i] = static_cast<int64_t>(words[i].load());
    refused |= i % row == 0 && out[1 + i] != 0;
  }
  const Ticket& ticket = arguments.ticket;
  if (refused && phase == Phase::step && ticket.first) *ticket.first = std::min(*ticket.first, ticket.number);
  for (int kind = 0; kind < kMaxSums; ++kind)
    for (size_t i = 0; arguments.sums[kind] && i < slices.size(); ++i)
      arguments.sums[kind][i] = sum_of_blocks(adjoint[i].partials[kind], first_block[i + 1] - first_block[i]);
}

}  // namespace

const Device cpu_device = {shape_on_cpu, move_on_cpu};

}  // namespace rh
