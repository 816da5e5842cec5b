#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace lebm {

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__) && !defined(LEBM_BASELINE_ALONE)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> available = [] {
    std::vector<const Kernels*> found;
#if defined(__x86_64__) && !defined(LEBM_BASELINE_ALONE)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      found.push_back(&avx512::kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back(&avx2::kernels);
#endif
    found.push_back(&baseline::kernels);
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

Parallel on_this_thread() {
  return {[](int64_t count, Parallel::Body body, void* context) {
            for (int64_t i = 0; i < count; ++i) body(context, i);
          },
          1};
}

Scratch::Scratch(size_t bytes) : memory_(::operator new(bytes ? bytes : 1, std::align_val_t(64))) {}

Scratch::~Scratch() { ::operator delete(memory_, std::align_val_t(64)); }

}  // namespace lebm
