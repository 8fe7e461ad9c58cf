// An optimizer is a struct in a file of this folder. The build compiles the kernels once per file (see setup.py), with
//
//     RH_RULE_FILE    the file, "sgd.h"       RH_RULE    the struct, SGD
//
// and each build enters itself under kName. What a struct gives is what rules/sgd.h gives: how many states and numbers; what a
// gradient adds to each state, from states before it that are new and states behind it that are decayed only; what is subtracted
// from the weight, from new states alone; and the two halves of the step's adjoint. All else (scales, planes, undoing, flags,
// hashes, dtypes, threads) follows.
#pragma once

#define RH_TEXT_OF(x) #x
#define RH_TEXT(x) RH_TEXT_OF(x)

#include RH_TEXT(RH_RULE_FILE)

namespace rh {
using Rule = RH_RULE;
static_assert(Rule::kStates <= kMaxStates && Rule::kNumbers <= kMaxNumbers, "core/slices.h holds more");
static_assert(Rule::kSumsBefore <= kMaxSums && Rule::kSumsAfter <= kMaxSums, "core/slices.h holds more");
}  // namespace rh
