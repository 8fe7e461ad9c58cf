// The torch-free core for NumPy: the same arithmetic, opened for research. Documented in reversible_hypergrad/core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../core/blocks.h"
#include "arrays.h"
#include "scales.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// A move of a layout's integers: k halvings, rounded by a centre.
template <class Layout>
void check_move(int shift, int64_t centre) {
  if (shift < 0 || shift > Layout::limit_bits)
    throw std::invalid_argument("shift: expected an integer in [0, " + std::to_string(Layout::limit_bits) + "] for " +
                                std::to_string(Layout::bits) + "-bit integers, got " + std::to_string(shift));
  if (centre < 0 || centre >= int64_t{1} << shift)
    throw std::invalid_argument("centre: expected an integer in [0, 2**shift), got " + std::to_string(centre) + " with shift " +
                                std::to_string(shift) + ". LazyScale.decay gives both");
}

// values in [low, high], or an error that names the first one outside.
template <class Integer>
void check_range(const Array<Integer>& values, Integer low, Integer high, const std::string& why) {
  const Integer* z = values.data();
  for (py::ssize_t i = 0; i < values.size(); ++i)
    if (z[i] < low || z[i] > high)
      throw std::overflow_error("values[" + std::to_string(i) + "]: expected an integer in [" + std::to_string(low) + ", " +
                                std::to_string(high) + "], " + why + ", got " + std::to_string(z[i]));
}

template <class Layout>
Array<uint8_t> contract(Array<typename Layout::Integer> values, int shift, int64_t centre) {
  using Integer = typename Layout::Integer;
  check_move<Layout>(shift, centre);
  constexpr Integer limit = Integer{1} << Layout::limit_bits;
  check_range<Integer>(values, -limit, limit - 1, "the limits of the layout");
  Array<uint8_t> planes({py::ssize_t{shift}, py::ssize_t{rh::plane_bytes(values.size())}});
  rh::contract_array(values.mutable_data(), values.size(), shift, centre, planes.mutable_data());
  return planes;
}

template <class Layout>
void expand(Array<typename Layout::Integer> values, const Array<uint8_t>& planes, int shift, int64_t centre) {
  using Integer = typename Layout::Integer;
  check_move<Layout>(shift, centre);
  const py::ssize_t bytes = rh::plane_bytes(values.size());
  if (planes.ndim() != 2 || planes.shape(0) != shift || planes.shape(1) != bytes)
    throw std::invalid_argument("planes: expected shape (" + std::to_string(shift) + ", " + std::to_string(bytes) + ") for " +
                                std::to_string(values.size()) + " values and shift " + std::to_string(shift) +
                                ", got another. Pass what contract returned");
  const Integer lowest = -(Integer{1} << (Layout::limit_bits - shift));
  check_range<Integer>(values, lowest, rh::largest_contracted<Layout>(shift), "which is all that a contraction gives");
  rh::expand_array(values.mutable_data(), values.size(), shift, centre, planes.data());
}

template <class Layout>
py::dict format_of() {
  return py::dict("state_bits"_a = Layout::bits, "limit_bits"_a = Layout::limit_bits,
                  "increment_bits"_a = Layout::increment_bits);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("BAD_INCREMENT") = static_cast<int>(rh::kBadIncrement);
  m.attr("STATE_OVERFLOW") = static_cast<int>(rh::kStateOverflow);
  m.attr("BAD_CHANGE") = static_cast<int>(rh::kBadChange);
  m.attr("WEIGHT_OVERFLOW") = static_cast<int>(rh::kWeightOverflow);
  m.attr("FOREIGN_GRADIENT") = static_cast<int>(rh::kForeignGradient);
  m.attr("BLOCK_SIZE") = rh::kBlockSize;
  m.attr("FORMATS") = py::make_tuple(format_of<rh::Layout32>(), format_of<rh::Layout64>());
  m.attr("SQUARES_FORMAT") = format_of<rh::LayoutSquares>();
  m.def("contract", &contract<rh::Layout64>, py::arg("values").noconvert(), "shift"_a, "centre"_a);
  m.def("contract", &contract<rh::Layout32>, py::arg("values").noconvert(), "shift"_a, "centre"_a);
  m.def("expand", &expand<rh::Layout64>, py::arg("values").noconvert(), py::arg("planes").noconvert(), "shift"_a, "centre"_a);
  m.def("expand", &expand<rh::Layout32>, py::arg("values").noconvert(), py::arg("planes").noconvert(), "shift"_a, "centre"_a);
  define_scales(m);
  m.def("block_count", &rh::block_count, "size"_a);
  m.def("state_size", &rh::state_size, "size"_a);
  m.def("plane_bytes", &rh::plane_bytes, "size"_a);
}
