// The kernels' source as it is, over the emulation beside this file. Compiled once per width of state.
#include "../../../csrc/cuda/kernels.cu"

#if RH_STATE_BITS == 64
namespace rh {
// Since the start of the process, of both widths.
int emulated_launches() { return emulated::launches; }
int emulated_current_device() { return emulated::current_device; }
int emulated_last_device() { return emulated::last_device; }
}  // namespace rh
#endif
