// Threads, as the kernels see them.
#pragma once

#include <cstdint>

namespace lebm {

// Runs body(context, i) for i in [0, count) on the caller's thread pool. Type-erased so that no
// function of the standard library or of PyTorch is instantiated inside an instruction set's
// region.
struct Parallel {
  using Body = void (*)(void* context, int64_t i);
  void (*run)(int64_t count, Body body, void* context);
  int64_t threads;
};

// The calling thread alone.
inline Parallel on_this_thread() {
  return {[](int64_t count, Parallel::Body body, void* context) {
            for (int64_t i = 0; i < count; ++i) body(context, i);
          },
          1};
}

}  // namespace lebm
