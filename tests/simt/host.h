// What a harness exports, and how Python steers the runs.
#pragma once

#include <cstddef>
#include <cstdint>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

namespace simt {

enum class Order : int { kAscending, kDescending, kRandom };

struct Settings {
  Order order = Order::kAscending;  // of the ready threads, and of the blocks
  uint64_t seed = 0;
  unsigned char poison = 0x3f;      // what shared memory holds at first, in every byte
  size_t shared_limit = 227 << 10;  // a block's shared memory; here that of sm_90
  bool checked = false;             // whether accesses are, where they are told
  const char* left_out_file = "";   // the end of its path,
  int left_out_line = 0;            // where __syncthreads, __syncwarp, __threadfence do nothing
};
extern Settings settings;

// Runs host code that launches kernels; 0 if all went well, 1 if simt_fault() tells what did not.
int run_guarded(void (*launches)(const void*), const void* parameters);

template <typename F>
int guarded(const F& launches) {
  return run_guarded([](const void* parameters) { (*static_cast<const F*>(parameters))(); },
                     &launches);
}

}  // namespace simt
