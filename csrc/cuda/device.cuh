// Macros for the parts of CUDA that are no C++: shared memory, launches, inline assembly.
//
// Kernels include this header instead of CUDA's. nvcc expands the macros to CUDA. A plain C++
// compiler expands them to the emulator of tests/simt, which runs the same source on the CPU.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// Declares `type name[extents]` in the shared memory of the thread block, not initialised.
// LEBM_SHARED(int, n) declares a single number.
#define LEBM_SHARED(type, name, ...) __shared__ type name __VA_ARGS__

// Declares `type* name`: the shared memory whose size the launch sets, one per thread block and
// aligned to 16 bytes. The symbol has one type, because instances of a template would otherwise
// declare it with different types.
#define LEBM_DYNAMIC_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char lebm_dynamic_[]; \
  type* const name = reinterpret_cast<type*>(lebm_dynamic_)

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...). Put a kernel whose name has a comma
// in parentheses.
#define LEBM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

// 2^x by the special function unit: within 2 ulp; subnormal numbers are flushed to 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

#include <cfloat>

#include "simt.h"

#define LEBM_SHARED(type, name, ...) SIMT_SHARED(type, name, __VA_ARGS__)
#define LEBM_DYNAMIC_SHARED(type, name) SIMT_DYNAMIC_SHARED(type, name)
#define LEBM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::simt::launch(#kernel, kernel, {grid, block, shared_bytes, stream}, __VA_ARGS__)

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < FLT_MIN ? 0.0f : y;
}

#endif
