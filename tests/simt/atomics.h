// Atomic operations on integers. Those on floating point do not compile: their results depend on
// the order of the threads, so that no test could check them.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace simt {

// Report an atomic access or a fence to the checker.
void note_atomic(const void* address, size_t bytes, const void* caller);
void note_fence();

// Plain operations suffice, because the emulator never interrupts a thread. They are not
// instrumented, so that the checker does not take the access for a plain one.
template <typename T, typename F>
__attribute__((noinline, no_sanitize_thread)) T atomic(T* address, F next) {
  note_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = next(old);
  return old;
}

}  // namespace simt

#define SIMT_ATOMIC(name, T, expression)                                                   \
  inline T name(T* address, T value) {                                                     \
    return simt::atomic(address, [=]([[maybe_unused]] T old) -> T { return expression; }); \
  }
// Sums wrap around.
#define SIMT_ATOMICS(T)                                                                \
  SIMT_ATOMIC(atomicAdd, T, static_cast<std::make_unsigned_t<T>>(old) + value)         \
  SIMT_ATOMIC(atomicMin, T, value < old ? value : old)                                 \
  SIMT_ATOMIC(atomicMax, T, old < value ? value : old)                                 \
  SIMT_ATOMIC(atomicAnd, T, old& value)                                                \
  SIMT_ATOMIC(atomicOr, T, old | value)                                                \
  SIMT_ATOMIC(atomicXor, T, old ^ value)                                               \
  SIMT_ATOMIC(atomicExch, T, value)                                                    \
  inline T atomicCAS(T* address, T compare, T value) {                                 \
    return simt::atomic(address, [=](T old) { return old == compare ? value : old; }); \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
SIMT_ATOMIC(atomicInc, unsigned, old < value ? old + 1 : 0)
#undef SIMT_ATOMICS
#undef SIMT_ATOMIC

float atomicAdd(float*, float) = delete;
double atomicAdd(double*, double) = delete;

inline void __threadfence(simt::Site site = simt::Site::here()) {
  if (!simt::skipped(site)) simt::note_fence();
}
inline void __threadfence_block() {}
