// Which builds of kernels.cpp there are, and which this machine can run.
#include "kernels.h"

namespace rh {

std::vector<const Kernels*>& all_kernels() {
  static std::vector<const Kernels*> kernels;
  return kernels;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    names.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) names.push_back("avx2");
#endif
  names.push_back("portable");
  return names;
}

std::string& active_instruction_set() {
  static std::string active = instruction_sets().front();
  return active;
}

const Kernels* find_kernels(const std::string& rule) {
  for (const Kernels* kernels : all_kernels())
    if (rule == kernels->rule && active_instruction_set() == kernels->instruction_set) return kernels;
  return nullptr;
}

}  // namespace rh
