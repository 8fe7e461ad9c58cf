// The kernels' source as it is, over the emulation beside this file. Compiled once per rule and width of state.
#include "../../../csrc/cuda/kernels.cu"
