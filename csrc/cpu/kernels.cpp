// Compiled once per rule and instruction set; RH_KERNELS names the latter (see setup.py, rules/rule.h).
#include "kernels.h"

#include "adjoint.h"
#include "worker.h"

namespace rh {
namespace {

template <class Layout>
Outcome move(Phase phase, const Slice& slice, int64_t first, int64_t last, bool hash, bool stream) {
  return with_type(slice.type, [&](auto example) {
    Worker<Layout, decltype(example)> worker(slice, hash, stream);
    worker.run(phase, first, last);
    return worker.outcome;
  });
}

template <class Layout>
void move_adjoint(Phase phase, const Slice& slice, const AdjointSlice& adjoint, int64_t first, int64_t last) {
  with_type(slice.type, [&](auto example) { AdjointWorker<Layout, decltype(example)>(slice, adjoint).run(phase, first, last); });
}

const Kernels kernels = {Rule::kName,    RH_TEXT(RH_KERNELS), Rule::kStates,          Rule::kNumbers,
                         kSumsBefore,    kSumsAfter,          Rule::kPower,           Rule::kDecaysWeight,
                         move<Layout64>, move<Layout32>,      move_adjoint<Layout64>, move_adjoint<Layout32>};
const Registration registration(&kernels);

}  // namespace
}  // namespace rh
