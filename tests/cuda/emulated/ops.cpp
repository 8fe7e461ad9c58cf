// The ops of the library over the emulated kernels, on CPU tensors, in a namespace of their own.
#include <torch/headeronly/util/Exception.h>

#include "../../../csrc/ops_adjoint.h"

namespace rh {

int emulated_launches();
int emulated_current_device();
int emulated_last_device();

namespace {

int device = 0;  // that the state is said to be on

void move_emulated(Phase phase, const Arguments& arguments, const Call& call) {
  auto* outcome = static_cast<uint64_t*>(call.outcome.data_ptr());
  const char* error = start_on_cuda(phase, arguments, call.hash, outcome, device, nullptr);
  STD_TORCH_CHECK(error == nullptr, error);
}

int64_t launches() { return emulated_launches(); }
void use_device(int64_t index) { device = static_cast<int>(index); }
std::vector<int64_t> devices() { return {emulated_current_device(), emulated_last_device()}; }

}  // namespace
}  // namespace rh

STABLE_TORCH_LIBRARY(reversible_hypergrad_emulated, m) {
  rh::define_moves(m);
  rh::define_adjoint_moves(m);
  m.def("launches() -> int");
  m.def("use_device(int index) -> ()");
  m.def("devices() -> int[]");  // the current one, and the one of the last launch
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CPU, m) {
  rh::implement_moves<rh::move_emulated>(m);
  rh::implement_adjoint_moves<rh::move_emulated>(m);
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&rh::launches));
  m.impl("use_device", TORCH_BOX(&rh::use_device));
  m.impl("devices", TORCH_BOX(&rh::devices));
}
