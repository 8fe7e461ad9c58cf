// The table of kernels that the CPU runs.
#pragma once

#include "kernels.h"

namespace rh {

const Kernels*& active_kernels();

}  // namespace rh
