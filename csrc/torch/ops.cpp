// Registers the ops, for the CPU and for CUDA. Without CUDA kernels in the build, the latter raise (no_cuda.cpp).
#include "ops.h"

#include <torch/headeronly/util/Exception.h>

#include <Python.h>

#include <algorithm>
#include <string>

#include "../cpu/kernels.h"

namespace {

std::string instruction_sets() {
  std::string names;
  for (const std::string& name : rh::instruction_sets()) names += (names.empty() ? "" : " ") + name;
  return names;
}

void use_instruction_set(StringHandle handle) {
  const std::string name = rh::take_string(handle);
  const std::vector<std::string> known = rh::instruction_sets();
  STD_TORCH_CHECK(std::find(known.begin(), known.end(), name) != known.end(), "instruction set '", name,
                  "' is not one that this machine runs: ", instruction_sets());
  rh::active_instruction_set() = name;
}

std::string rules() {
  std::string names;
  for (const rh::Kernels* kernels : rh::all_kernels())
    if (kernels->instruction_set == std::string("portable")) names += (names.empty() ? "" : " ") + std::string(kernels->rule);
  return names;
}

int64_t program_numbers(StringHandle rule) { return rh::cpu_device.shape(rh::take_string(rule)).numbers; }

bool cuda_in_build() { return rh::cuda_in_build; }

}  // namespace

STABLE_TORCH_LIBRARY(reversible_hypergrad, m) {
  rh::define_moves(m);
  m.def("instruction_sets() -> str");
  m.def("use_instruction_set(str name) -> ()");
  m.def("rules() -> str");
  m.def("program_numbers(str rule) -> int");
  m.def("cuda_in_build() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CPU, m) { rh::implement_moves<rh::cpu_device>(m); }
STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CUDA, m) { rh::implement_moves<rh::cuda_device>(m); }

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
  m.impl("rules", TORCH_BOX(&rules));
  m.impl("program_numbers", TORCH_BOX(&program_numbers));
  m.impl("cuda_in_build", TORCH_BOX(&cuda_in_build));
}

// An empty module: importing it loads the library and so registers the ops.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
