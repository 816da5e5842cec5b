// The instruction set that a file is compiled for, and the region that its code lies in.
//
// A .cpp file names its instruction set by LEBM_AVX2 or LEBM_AVX512 (neither: the baseline) before
// it includes a kernel. Every header of the kernels first includes what it uses and then puts its
// code between LEBM_BEGIN_TARGET and LEBM_END_TARGET. So includes lie outside of all regions: no
// function of the standard library is compiled for an instruction set that the processor may lack.
// The code itself is in an unnamed namespace: the linker can't take a function of one instruction
// set for the same function of another.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(LEBM_AVX512) || defined(LEBM_AVX2)
#include <immintrin.h>
#endif

#define LEBM_PRAGMA(text) _Pragma(#text)

#if defined(LEBM_AVX512)
// GCC 12's own header leaves the unused operand of its masked built-ins undefined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#define LEBM_TARGET avx512
#define LEBM_PUSH_TARGET        \
  LEBM_PRAGMA(GCC push_options) \
  LEBM_PRAGMA(GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))
#define LEBM_POP_TARGET LEBM_PRAGMA(GCC pop_options)
#elif defined(LEBM_AVX2)
#define LEBM_TARGET avx2
#define LEBM_PUSH_TARGET LEBM_PRAGMA(GCC push_options) LEBM_PRAGMA(GCC target("avx2,fma"))
#define LEBM_POP_TARGET LEBM_PRAGMA(GCC pop_options)
#else
#define LEBM_TARGET baseline
#define LEBM_PUSH_TARGET
#define LEBM_POP_TARGET
#endif

#define LEBM_BEGIN_TARGET       \
  LEBM_PUSH_TARGET              \
  namespace lebm::LEBM_TARGET { \
  namespace {
#define LEBM_END_TARGET \
  }                     \
  }                     \
  LEBM_POP_TARGET

// A build with sanitizers defines both as less: instrumenting everything inlined takes long.
#ifndef LEBM_INLINE
#define LEBM_INLINE inline __attribute__((always_inline))
#define LEBM_INLINE_LAMBDA __attribute__((always_inline))
#endif
