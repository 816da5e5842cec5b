// For harnesses: exported functions, and the settings that Python makes.
#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

namespace simt {

enum class Order : int { kAscending, kDescending, kRandom };

struct Settings {
  Order order = Order::kAscending;  // of the ready threads, and of the thread blocks
  uint64_t seed = 0;
  unsigned char poison = 0x3f;      // the initial value of every byte of shared memory
  size_t shared_limit = 227 << 10;  // per thread block; here that of sm_90
  bool checked = false;             // whether accesses are checked, in instrumented code
  const char* skipped_file = "";    // the end of its path
  int skipped_line = 0;  // of a __syncthreads, __syncwarp or __threadfence that does nothing
};
extern Settings settings;

// Runs host code that launches kernels. Returns 0, or 1 after a fault, which simt_fault()
// describes.
int run_guarded(void (*launches)(const void*), const void* parameters);

template <typename F>
int guarded(const F& launches) {
  return run_guarded([](const void* parameters) { (*static_cast<const F*>(parameters))(); },
                     &launches);
}

}  // namespace simt
