// A rule's states in registers: as many weights of each as one register of the layout's reals holds.
#pragma once

#include <tuple>
#include <utility>

#include "slot_block.h"
// After the lanes, whose functions rules call.
#include "../rules/rule.h"

namespace rh {
namespace {

constexpr int K = Rule::kStates;
constexpr int N = Rule::kNumbers;

// Calls f with each state as a constant, in order or from the last to the first.
template <class F, int... k>
RH_INLINE void for_each_of(F f, std::integer_sequence<int, k...>) {
  (f(std::integral_constant<int, k>{}), ...);
}
template <class F>
RH_INLINE void for_states(F f) {
  for_each_of(f, std::make_integer_sequence<int, K>{});
}
template <class F, int... k>
RH_INLINE void for_each_backwards(F f, std::integer_sequence<int, k...>) {
  (f(std::integral_constant<int, K - 1 - k>{}), ...);
}
template <class F>
RH_INLINE void for_states_backwards(F f) {
  for_each_backwards(f, std::make_integer_sequence<int, K>{});
}

// One T<Layout, k> per state.
template <class Layout, template <class, int> class T, int... k>
std::tuple<T<Layout, k>...> tuple_of(std::integer_sequence<int, k...>);
template <class Layout, template <class, int> class T>
using PerState = decltype(tuple_of<Layout, T>(std::make_integer_sequence<int, K>{}));

// What a state's integers are multiplied by.
template <class Real>
struct Scale {
  Real sigma, inverse;
  double wide_sigma, wide_inverse;

  static Scale of(double sigma) { return {static_cast<Real>(sigma), static_cast<Real>(1.0 / sigma), sigma, 1.0 / sigma}; }
};

template <class Layout, int k>
struct StateLanes {
  using P = Pack<Layout>;
  using Own = StateLayout<Layout, k>;
  using Q = Pack<Own>;
  using Integer = typename Own::Integer;
  using Register = typename Q::Integer;
  using Reals = typename P::Real;
  static constexpr int parts = P::width / Q::width;  // 2 for wide states of narrow layouts

  Register part[parts];

  static RH_INLINE StateLanes load(const void* integers, int64_t i) {
    StateLanes z;
    for (int p = 0; p < parts; ++p) z.part[p] = rh::load<Register>(static_cast<const Integer*>(integers) + i + p * Q::width);
    return z;
  }
  RH_INLINE void store(void* integers, int64_t i) const {
    for (int p = 0; p < parts; ++p) rh::store(static_cast<Integer*>(integers) + i + p * Q::width, part[p]);
  }

  RH_INLINE Reals real(const Scale<typename Layout::Real>& scale) const {
    if constexpr (!kIsSquare<k>) {
      return P::real(part[0]) * scale.sigma;
    } else {
      typename Q::Real values[parts];
      const Register one = all<Register>(Integer{1});
      for (int p = 0; p < parts; ++p) values[p] = Q::real(part[p] > one ? part[p] : one) * scale.wide_sigma;
      if constexpr (parts == 1) {
        return values[0];
      } else {
        const typename Q::Single halves[2] = {Q::single(values[0]), Q::single(values[1])};
        return join<Reals>(halves);
      }
    }
  }

  // What an increment comes to in quanta.
  static RH_INLINE StateLanes round(Reals increment, const Scale<typename Layout::Real>& scale) {
    StateLanes q;
    if constexpr (!kIsSquare<k>) {
      q.part[0] = P::round(increment * scale.inverse);
    } else {
      typename Q::Real values[parts];
      if constexpr (parts == 1) {
        values[0] = increment;
      } else {
        typename Q::Single halves[2];
        split(increment, halves);
        for (int p = 0; p < parts; ++p) values[p] = Q::widened(halves[p]);
      }
      for (int p = 0; p < parts; ++p) {
        const Register rounded = Q::round(values[p] * scale.wide_inverse);
        q.part[p] = rounded - ((rounded == 0) & as_bits<Register>(values[p] != 0));
      }
    }
    return q;
  }

  RH_INLINE StateLanes operator+(const StateLanes& other) const {
    StateLanes sum;
    for (int p = 0; p < parts; ++p) sum.part[p] = part[p] + other.part[p];
    return sum;
  }
  RH_INLINE StateLanes operator-(const StateLanes& other) const {
    StateLanes difference;
    for (int p = 0; p < parts; ++p) difference.part[p] = part[p] - other.part[p];
    return difference;
  }

  // The check words of all lanes; see core/fixed_point.h and core/planes.h.
  RH_INLINE Register increment_words() const {
    Register words{};
    for (int p = 0; p < parts; ++p) words = words | increment_word<Own>(part[p]);
    return words;
  }
  RH_INLINE Register used_words() const {
    Register words{};
    for (int p = 0; p < parts; ++p) words = words | used_bits(part[p]);
    return words;
  }
  RH_INLINE Register foreign_words(int shift) const {
    const Integer largest = largest_contracted<Own>(shift), lowest = kIsSquare<k> ? Integer{0} : lowest_contracted<Own>(shift);
    Register words{};
    for (int p = 0; p < parts; ++p) words = words | foreign_word<Own>(part[p], largest, lowest);
    return words;
  }

  // `keys`: of the first part's words.
  RH_INLINE void hash(HashSum& sum, HashSum::Words keys) const {
    for (int p = 0; p < parts; ++p, keys = HashSum::next_keys(keys)) sum.add(part[p], keys);
  }
};

}  // namespace
}  // namespace rh
