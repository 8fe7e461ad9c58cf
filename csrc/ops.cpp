// Registers the ops, for the CPU and for CUDA. Without CUDA kernels in the build, the latter raise (cuda/absent.cpp).
#include "ops.h"

#include <torch/headeronly/util/Exception.h>

#include <Python.h>

#include <string>

#include "cpu/move.h"
#include "ops_adjoint.h"

namespace {

std::string instruction_sets() {
  std::string names;
  for (const rh::Kernels* kernels : rh::available_kernels()) names += (names.empty() ? "" : " ") + std::string(kernels->name);
  return names;
}

void use_instruction_set(std::string name) {
  for (const rh::Kernels* kernels : rh::available_kernels())
    if (name == kernels->name) {
      rh::active_kernels() = kernels;
      return;
    }
  STD_TORCH_CHECK(false, "instruction set '", name, "' is not one that this machine runs: ", instruction_sets());
}

bool cuda_in_build() { return rh::cuda_in_build; }

}  // namespace

STABLE_TORCH_LIBRARY(reversible_hypergrad, m) {
  rh::define_moves(m);
  rh::define_adjoint_moves(m);
  m.def("instruction_sets() -> str");
  m.def("use_instruction_set(str name) -> ()");
  m.def("cuda_in_build() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CPU, m) {
  rh::implement_moves<rh::move_on_cpu>(m);
  rh::implement_adjoint_moves<rh::move_on_cpu>(m);
}
STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CUDA, m) {
  rh::implement_moves<rh::move_on_cuda>(m);
  rh::implement_adjoint_moves<rh::move_on_cuda>(m);
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("use_instruction_set", TORCH_BOX(&use_instruction_set));
  m.impl("cuda_in_build", TORCH_BOX(&cuda_in_build));
}

// An empty module: importing it loads the library and so registers the ops.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
