// Scales of many tensors' slots, for reversible_hypergrad/reversible/scales.py.
#pragma once

#include <pybind11/pybind11.h>

void define_scales(pybind11::module_& m);
