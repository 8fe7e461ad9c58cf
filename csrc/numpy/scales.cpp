// The scales of many tensors' slots, and a step's tables made of them, in one call per step: in NumPy's operations, each on a
// dozen numbers, they take as long as a small model's kernels.
#include "scales.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/scales.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<double>;
using Integers = Array<int64_t>;

// Rows that may be one for all.
struct Rows {
  const double* data;
  py::ssize_t columns, stride;

  Rows(const Floats& table, py::ssize_t count) : data(table.data()) {
    columns = table.shape(table.ndim() - 1);
    stride = table.ndim() == 1 || table.shape(0) == 1 ? 0 : columns;
    if (stride && table.shape(0) != count)
      throw std::invalid_argument("expected 1 or " + std::to_string(count) + " rows, got " + std::to_string(table.shape(0)));
  }
  const double* operator[](py::ssize_t row) const { return data + row * stride; }
};

class ScaleTables {
 public:
  ScaleTables(std::vector<int64_t> plane_bytes, std::vector<int> most_shift)
      : plane_bytes_(std::move(plane_bytes)),
        count_(static_cast<py::ssize_t>(plane_bytes_.size())),
        most_shift_(std::move(most_shift)),
        slots_(static_cast<int>(most_shift_.size())),
        still_(shift_table()) {
    for (py::ssize_t i = 0; i < count_; ++i) *still_.mutable_data(i, 0) = 1;
  }

  py::tuple arguments() const { return py::make_tuple(plane_bytes_, most_shift_); }

  // a, count, exponent -> the same after a decay, and the step's tables.
  py::tuple decay(const Floats& a, const Integers& count, const Integers& exponent, const Floats& factors, const Floats& of_rule,
                  const std::optional<Array<bool>>& active, const std::optional<Integers>& rescale) const {
    check(a, count, exponent, rescale);
    const Rows factor(factors, count_), rule(of_rule, count_);
    Floats next({count_, py::ssize_t{slots_}});
    bool moves = rescale.has_value();
    for (py::ssize_t i = 0; i < count_; ++i)
      for (int s = 0; s < slots_; ++s) {
        const double product = active && !active->data()[i] ? a.at(i, s) : a.at(i, s) * factor[i][s];
        next.mutable_at(i, s) = product;
        moves |= product <= 0.5;
      }
    if (!moves && !active) return py::make_tuple(next, count, exponent, numbers(a, exponent, next, exponent, rule), still_, 0);
    Integers counts({count_, py::ssize_t{slots_}}), exponents({count_, py::ssize_t{slots_}}), shifts = shift_table();
    int64_t planes = 0;
    for (py::ssize_t i = 0; i < count_; ++i) {
      const bool takes_part = !active || active->data()[i];
      *shifts.mutable_data(i, 0) = takes_part;
      for (int s = 0; s < slots_; ++s) {
        const int64_t more = rescale && takes_part ? rescale->at(i, s) : 0;
        double& product = next.mutable_at(i, s);
        const rh::Shift shift = enter(shifts, i, s, takes_part ? product : 1.0, count.at(i, s), more, planes);
        if (takes_part) product = std::ldexp(product, rh::halvings_of(product));
        counts.mutable_at(i, s) = count.at(i, s) + (shift.bits > 0);
        exponents.mutable_at(i, s) = exponent.at(i, s) + more;
      }
    }
    const Integers& after = rescale ? exponents : exponent;
    return py::make_tuple(next, counts, after, numbers(a, exponent, next, after, rule), shifts, planes);
  }

  // The same step undone: a and exponent before it, and all of after it -> the counts before it, and the step's tables again.
  py::tuple go_back(const Floats& a, const Integers& exponent, const Floats& a_after, const Integers& count_after,
                    const Integers& exponent_after, const Floats& factors, const Floats& of_rule,
                    const std::optional<Integers>& rescale) const {
    check(a, count_after, exponent, rescale);
    const Rows factor(factors, count_), rule(of_rule, count_);
    bool moves = rescale.has_value();
    for (py::ssize_t i = 0; i < count_; ++i)
      for (int s = 0; s < slots_; ++s) moves |= a.at(i, s) * factor[i][s] <= 0.5;
    const Floats table = numbers(a, exponent, a_after, exponent_after, rule);
    if (!moves) return py::make_tuple(count_after, table, still_, 0);
    Integers counts({count_, py::ssize_t{slots_}}), shifts = shift_table();
    int64_t planes = 0;
    for (py::ssize_t i = 0; i < count_; ++i) {
      *shifts.mutable_data(i, 0) = 1;
      for (int s = 0; s < slots_; ++s) {
        const double product = a.at(i, s) * factor[i][s];
        const int64_t more = rescale ? rescale->at(i, s) : 0, after = count_after.at(i, s);
        const int64_t before = after - (rh::shift_of(product, 0, more, most_shift(s)).bits > 0);
        enter(shifts, i, s, product, before, more, planes);
        counts.mutable_at(i, s) = before;
      }
    }
    return py::make_tuple(counts, table, shifts, planes);
  }

 private:
  void check(const Floats& a, const Integers& count, const Integers& exponent, const std::optional<Integers>& rescale) const {
    for (const py::array* table :
         {static_cast<const py::array*>(&a), static_cast<const py::array*>(&count), static_cast<const py::array*>(&exponent)})
      if (table->ndim() != 2 || table->shape(0) != count_ || table->shape(1) != slots_)
        throw std::invalid_argument("scales: expected shape (" + std::to_string(count_) + ", " + std::to_string(slots_) + ")");
    if (!rescale) return;
    if (rescale->ndim() != 2 || rescale->shape(0) != count_ || rescale->shape(1) != slots_)
      throw std::invalid_argument("rescale: expected the shape of the scales");
    for (py::ssize_t i = 0; i < rescale->size(); ++i)
      if (rescale->data()[i] < 0)
        throw std::invalid_argument("rescale: expected non-negative integers, got " + std::to_string(rescale->data()[i]));
  }

  int most_shift(int slot) const { return most_shift_[static_cast<size_t>(slot)]; }

  // A row per tensor: whether it took part, then shift and centre per slot.
  Integers shift_table() const {
    Integers table({count_, py::ssize_t{1 + 2 * slots_}});
    std::fill_n(table.mutable_data(), table.size(), 0);
    return table;
  }

  rh::Shift enter(Integers& shifts, py::ssize_t i, int s, double product, int64_t count, int64_t rescale, int64_t& planes) const {
    const rh::Shift shift = rh::shift_of(product, count, rescale, most_shift(s));
    shifts.mutable_at(i, 1 + 2 * s) = shift.bits;
    shifts.mutable_at(i, 2 + 2 * s) = shift.centre;
    planes += shift.bits * plane_bytes_[static_cast<size_t>(i)];
    return shift;
  }

  // A row per tensor: sigma of the states after the step, of the weight before and after it, and the rule's numbers.
  Floats numbers(const Floats& a, const Integers& exponent, const Floats& a_after, const Integers& exponent_after,
                 const Rows& rule) const {
    Floats table({count_, slots_ + 1 + rule.columns});
    const auto sigma = [](const Floats& fraction, const Integers& power, py::ssize_t i, int s) {
      return std::ldexp(fraction.at(i, s), static_cast<int>(power.at(i, s)));
    };
    for (py::ssize_t i = 0; i < count_; ++i) {
      double* row = table.mutable_data(i, 0);
      const int weight = slots_ - 1;
      for (int s = 0; s < weight; ++s) row[s] = sigma(a_after, exponent_after, i, s);
      row[weight] = sigma(a, exponent, i, weight);
      row[weight + 1] = sigma(a_after, exponent_after, i, weight);
      std::copy_n(rule[i], rule.columns, row + weight + 2);
    }
    return table;
  }

  std::vector<int64_t> plane_bytes_;
  py::ssize_t count_;
  std::vector<int> most_shift_;  // of each slot, whose integers have a width of their own
  int slots_;
  Integers still_;
};

}  // namespace

void define_scales(py::module_& m) {
  py::class_<ScaleTables>(m, "ScaleTables")
      .def(py::init<std::vector<int64_t>, std::vector<int>>(), "plane_bytes"_a, "most_shift"_a)
      .def(py::pickle([](const ScaleTables& tables) { return tables.arguments(); },
                      [](const py::tuple& kept) {
                        return ScaleTables(kept[0].cast<std::vector<int64_t>>(), kept[1].cast<std::vector<int>>());
                      }))
      .def("decay", &ScaleTables::decay)
      .def("go_back", &ScaleTables::go_back);
  m.def("halvings_of", &rh::halvings_of, "product"_a);
  m.def(
      "decay_scale",
      [](double a, int64_t count, double factor, int64_t rescale, int most_shift) {
        const rh::Shift shift = rh::shift_of(a * factor, count, rescale, most_shift);
        const double next = std::ldexp(a * factor, rh::halvings_of(a * factor));
        return py::make_tuple(next, count + (shift.bits > 0), shift.bits, shift.centre);
      },
      "a"_a, "count"_a, "factor"_a, "rescale"_a, "most_shift"_a);
}
