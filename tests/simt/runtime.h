// Launches, barriers and shared memory, for kernels and the emulated intrinsics.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fiber.h"
#include "types.h"

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::running.block_index)
#define blockDim (::simt::running.config.block)
#define gridDim (::simt::running.config.grid)
constexpr int warpSize = 32;

namespace simt {

// The place in the kernel where an intrinsic is called: a default argument here() is evaluated
// there.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class State : uint8_t { kReady, kAtBarrier, kAtWarpSync, kReturned };

// A thread of the running thread block, and what it waits for.
struct Thread {
  uint3 index;
  unsigned rank;  // in the thread block; x varies fastest
  State state;
  const char* operation;
  Site site;
  uint32_t mask;
  uint64_t value;
  uint64_t received[warpSize];  // the lanes' values after a warp synchronisation
};

struct Config {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;  // ignored: a launch runs at once
};

struct Launch {
  const char* name;
  const void* kernel;
  Config config;
  uint3 block_index;
};

extern Thread* current;  // null in host code
extern Launch running;

// Ends the launch with a fault; `kind` is its short name.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const char* kind, const char* format,
                                                             ...);

const char* base_name(const char* path);

// Whether the settings disable the barrier or fence there: a test must then find a fault.
bool skipped(Site site);

// Waits for all threads of the thread block, at this operation and site. Returns the number of
// threads whose `predicate` is true.
int wait_for_block(const char* operation, bool predicate, Site site);

// Waits for the lanes of the mask, at this operation, mask and site. Returns their values, by lane.
// It orders memory only with orders_memory: CUDA promises that for some operations.
const uint64_t* wait_for_warp(const char* operation, uint32_t mask, uint64_t value,
                              bool orders_memory, Site site);

// A declaration of static shared memory, and its address in the running thread block.
struct SharedSite {
  const char* name;
  unsigned block;
  void* place;
};
void* static_shared(SharedSite& site, size_t bytes, size_t alignment);
void* dynamic_shared();

#define SIMT_SHARED(type, name, ...)                              \
  static ::simt::SharedSite name##_site_{#name, 0, nullptr};      \
  auto& name = *static_cast<::simt::Declared<type __VA_ARGS__>*>( \
      ::simt::static_shared(name##_site_, sizeof(type __VA_ARGS__), alignof(type __VA_ARGS__)))
#define SIMT_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::simt::dynamic_shared())

template <typename T>
struct Identity {
  using Type = T;
};
template <typename T>
using Declared = typename Identity<T>::Type;  // makes float[4][5] a type name that * can follow

// Calls `body(parameters)` once per thread.
void run(const Launch& launch, void (*body)(const void*), const void* parameters);

template <typename... P, typename... A>
void launch(const char* name, void (*kernel)(P...), Config config, const A&... arguments) {
  // Not instrumented: it reads the host's stack, which the checker would report as a fault.
  const auto body = [&]() __attribute__((no_sanitize_thread)) {
    kernel(static_cast<P>(arguments)...);
  };
  using Body = decltype(body);
  run(
      {name, reinterpret_cast<const void*>(kernel), config, {}},
      [](const void* parameters) { (*static_cast<Body*>(parameters))(); }, &body);
}

}  // namespace simt

inline void __syncthreads(simt::Site site = simt::Site::here()) {
  if (!simt::skipped(site)) simt::wait_for_block("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::here()) {
  return simt::wait_for_block("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::here()) {
  return simt::wait_for_block("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::here()) {
  return simt::wait_for_block("__syncthreads_and", predicate == 0, site) == 0;
}

inline void __trap(simt::Site site = simt::Site::here()) {
  simt::fail("trap", "__trap at %s:%d", simt::base_name(site.file), site.line);
}

// A kernel may use more than 48 KiB only after this call. The launch checks that.
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
namespace simt {
void allow_dynamic_shared(const void* kernel, size_t bytes);
}
template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
  simt::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
