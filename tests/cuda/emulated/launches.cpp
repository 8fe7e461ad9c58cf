// What the emulation has counted since the start of the process, for all rules and both widths.
#include "cuda_runtime.h"

namespace rh {

int emulated_launches() { return emulated::launches; }
int emulated_current_device() { return emulated::current_device; }
int emulated_last_device() { return emulated::last_device; }

}  // namespace rh
