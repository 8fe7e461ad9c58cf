// The ops of the library over the emulated kernels, on CPU tensors, in a namespace of their own.
#include "../../../csrc/torch/ops.h"

#include <torch/headeronly/util/Exception.h>

#include "../../../csrc/cuda/kernels.h"

namespace rh {

int emulated_launches();
int emulated_current_device();
int emulated_last_device();

namespace {

int device = 0;  // that the state is said to be on

RuleShape shape_of(const std::string& rule) {
  const CudaKernels* kernels = find_cuda_kernels(rule, 64, false);
  STD_TORCH_CHECK(kernels != nullptr, "rule: there are no kernels for '", rule, "' in this build");
  return {kernels->states, kernels->numbers, kernels->sums_before, kernels->sums_after, kernels->powers, kernels->decays_weight};
}

void move_emulated(Phase phase, const Arguments& arguments, const Call& call) {
  const CudaMove move{phase,
                      arguments.slices,
                      arguments.first_block,
                      arguments.adjoint,
                      arguments.sums,
                      arguments.moved,
                      arguments.ticket,
                      call.hash,
                      static_cast<uint64_t*>(call.outcome.data_ptr()),
                      device,
                      nullptr};
  const char* error = find_cuda_kernels(call.rule, arguments.wide ? 64 : 32, !arguments.adjoint.empty())->move(move);
  STD_TORCH_CHECK(error == nullptr, error);
}

int64_t launches() { return emulated_launches(); }
void use_device(int64_t index) { device = static_cast<int>(index); }
std::vector<int64_t> devices() { return {emulated_current_device(), emulated_last_device()}; }

}  // namespace

extern const Device emulated_device;
const Device emulated_device = {shape_of, move_emulated};

}  // namespace rh

STABLE_TORCH_LIBRARY(reversible_hypergrad_emulated, m) {
  rh::define_moves(m);
  m.def("launches() -> int");
  m.def("use_device(int index) -> ()");
  m.def("devices() -> int[]");  // the current one, and the one of the last launch
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CPU, m) { rh::implement_moves<rh::emulated_device>(m); }

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&rh::launches));
  m.impl("use_device", TORCH_BOX(&rh::use_device));
  m.impl("devices", TORCH_BOX(&rh::devices));
}
