#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace lebm {

namespace {

const Kernels kBaseline{"baseline", baseline::row_kernel, baseline::column_kernel,
                        baseline::soft_kernels};
#ifdef LEBM_X86
const Kernels kAvx2{"avx2", avx2::row_kernel, avx2::column_kernel, avx2::soft_kernels};
const Kernels kAvx512{"avx512", avx512::row_kernel, avx512::column_kernel, avx512::soft_kernels};
#endif

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> available = [] {
    std::vector<const Kernels*> found;
#ifdef LEBM_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      found.push_back(&kAvx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2);
#endif
    found.push_back(&kBaseline);
    return found;
  }();
  return available;
}

namespace {

const Kernels* named(const std::string& name, const char* source) {
  std::string names;
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::runtime_error(std::string(source) + " must be one of " + names +
                           " on this processor, got '" + name + "'");
}

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

const Kernels& kernels() {
  if (const Kernels* chosen = forced.load()) return *chosen;
  static const Kernels* const preferred = [] {
    const char* name = std::getenv("LEBM_KERNELS_ISA");
    return name && *name ? named(name, "LEBM_KERNELS_ISA") : available_kernels().front();
  }();
  return *preferred;
}

void force_kernels(const std::string& name) {
  forced.store(name.empty() ? nullptr : named(name, "the instruction set"));
}

}  // namespace lebm
