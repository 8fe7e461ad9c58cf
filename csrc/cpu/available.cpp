// Which builds of kernels.cpp this machine can run.
#include "kernels.h"

namespace rh {

#if defined(__x86_64__)
extern const Kernels avx512, avx2;
#endif
extern const Kernels portable;

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2);
#endif
  found.push_back(&portable);
  return found;
}

}  // namespace rh
