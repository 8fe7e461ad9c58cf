// Compiled once per rule and instruction set; RH_KERNELS names the latter (see setup.py, rules/rule.h).
#include "kernels.h"

#include "adjoint.h"
#include "worker.h"

namespace rh {
namespace {

template <class Layout, class T>
Outcome move_type(Phase phase, const Slice& slice, int64_t first, int64_t last, bool hash, bool stream) {
  Worker<Layout, T> worker(slice, hash, stream);
  worker.run(phase, first, last);
  return worker.outcome;
}

template <class Layout>
Outcome move(Phase phase, const Slice& slice, int64_t first, int64_t last, bool hash, bool stream) {
  switch (slice.type) {
    case ScalarType::float32:
      return move_type<Layout, float>(phase, slice, first, last, hash, stream);
    case ScalarType::float64:
      return move_type<Layout, double>(phase, slice, first, last, hash, stream);
    case ScalarType::bfloat16:
      return move_type<Layout, BFloat16>(phase, slice, first, last, hash, stream);
    default:
      return move_type<Layout, Float16>(phase, slice, first, last, hash, stream);
  }
}

const Kernels kernels = {Rule::kName,      RH_TEXT(RH_KERNELS), Rule::kStates,  Rule::kNumbers,         Rule::kSumsBefore,
                         Rule::kSumsAfter, move<Layout64>,      move<Layout32>, move_adjoint<Layout64>, move_adjoint<Layout32>};
const Registration registration(&kernels);

}  // namespace
}  // namespace rh
