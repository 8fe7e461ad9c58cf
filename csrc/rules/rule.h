// An optimizer is a struct in a file of this folder. The build compiles the kernels once per file (see setup.py), with
//
//     RH_RULE_FILE    the file, sgd.h
//
// which names its struct Rule, and each build enters itself under kName. What a struct gives is what rules/sgd.h gives: how many
// states and numbers; by which power of the gradient each state scales, and whether the weights may decay; what a gradient adds
// to each state, from states before it that are new and states behind it that are decayed only; what is subtracted from the
// weight, from new states alone; and the two halves of the step's adjoint. All else (scales, planes, undoing, flags, hashes,
// dtypes, threads) follows.
#pragma once

#define RH_TEXT_OF(x) #x
#define RH_TEXT(x) RH_TEXT_OF(x)

#include RH_TEXT(RH_RULE_FILE)

namespace rh {
// Of a state: squares span twice the range, so they have 64 bits in every layout.
template <int k>
constexpr bool kIsSquare = Rule::kPower[k] == 2;
template <class Layout, int k>
using StateLayout = std::conditional_t<kIsSquare<k>, LayoutSquares, Layout>;
// The adjoint's inner products: those of the rule, and before the gradient is there, last, that by the weights' decay.
constexpr int kSumsBefore = int{Rule::kSumsBefore} + int{Rule::kDecaysWeight};
constexpr int kSumsAfter = Rule::kSumsAfter;
static_assert(Rule::kStates <= kMaxStates && Rule::kNumbers <= kMaxNumbers, "core/slices.h holds more");
static_assert(kSumsBefore <= kMaxSums && kSumsAfter <= kMaxSums, "core/slices.h holds more");
}  // namespace rh
