// The ops of the library over the emulated kernels, on CPU tensors, in a namespace of their own.
#include "../../../csrc/ops.h"

#include <torch/headeronly/util/Exception.h>

#include "../../../csrc/cuda/kernels.h"

namespace rh {

int emulated_launches();

namespace {

void move_emulated(Phase phase, const Arguments& arguments, const Call& call) {
  const CudaMove move = arguments.wide ? cuda_move64 : cuda_move32;
  auto* outcome = static_cast<uint64_t*>(call.outcome.data_ptr());
  const char* error = move(phase, arguments.bucket, arguments.slices, call.hash, outcome, 0, nullptr);
  STD_TORCH_CHECK(error == nullptr, error);
}

int64_t launches() { return emulated_launches(); }

}  // namespace
}  // namespace rh

STABLE_TORCH_LIBRARY(reversible_hypergrad_emulated, m) {
  rh::define_moves(m);
  m.def("launches() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CPU, m) { rh::implement_moves<rh::move_emulated>(m); }

STABLE_TORCH_LIBRARY_IMPL(reversible_hypergrad_emulated, CompositeExplicitAutograd, m) {
  m.impl("launches", TORCH_BOX(&rh::launches));
}
