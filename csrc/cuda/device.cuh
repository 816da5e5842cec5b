// The few words of CUDA that a kernel says differently where there is no CUDA.
//
// Kernels include this and nothing of CUDA. nvcc takes the words for what they are; a plain C++
// compiler takes them for the emulator of tests/simt, which runs the same source on the CPU.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// type name[extents]... in a block's shared memory; LEBM_SHARED(int, n) is a single one. Its
// contents are not initialised.
#define LEBM_SHARED(type, name, ...) __shared__ type name __VA_ARGS__

// type* name, the shared memory whose size the launch gives. There is one of it a block, aligned to
// 16 bytes. Its symbol has one type, or templates that want different ones would clash.
#define LEBM_DYNAMIC_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char lebm_dynamic_[]; \
  type* const name = reinterpret_cast<type*>(lebm_dynamic_)

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...); a kernel with a comma in its name
// stands in parentheses.
#define LEBM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

// 2^x by the special function unit: within 2 ulp; subnormal numbers count as 0.
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
