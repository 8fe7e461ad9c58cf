// As kernels.cpp.
#include "../../../csrc/cuda/adjoint.cu"
