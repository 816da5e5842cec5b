// Device functions that need no other thread: arithmetic, bits, loads.
#pragma once

// Not <cmath>: CUDA has isinf and the like without std::.
#include <math.h>

#include <cstring>

#include "types.h"

namespace simt {

template <typename To, typename From>
To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace simt

// Operations that the compiler must not fuse.
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }

inline int __float_as_int(float a) { return simt::bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return simt::bit_cast<unsigned>(a); }
inline float __int_as_float(int a) { return simt::bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return simt::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return simt::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return simt::bit_cast<double>(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz(a); }
inline int __clzll(long long a) { return a == 0 ? 64 : __builtin_clzll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }

// As in CUDA, for any two numbers, which are converted as in an expression.
template <typename A, typename B>
constexpr auto min(A a, B b) -> decltype(a + b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr auto max(A a, B b) -> decltype(a + b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
