// Vectors of 4 floats or 2 doubles in the compiler's own vector types: what every processor of the
// architecture has (SSE2 on x86-64, NEON on arm64), and the path of any other. See avx2.h.
#pragma once

#include "../target.h"

LEBM_BEGIN_TARGET

typedef float VecF __attribute__((vector_size(16)));
typedef double VecD __attribute__((vector_size(16)));
typedef uint32_t VecU32 __attribute__((vector_size(16)));
typedef uint64_t VecU64 __attribute__((vector_size(16)));

LEBM_INLINE VecF load(const float* p) {
  VecF a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
LEBM_INLINE VecD load(const double* p) {
  VecD a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
LEBM_INLINE void store(float* p, VecF a) { __builtin_memcpy(p, &a, sizeof a); }
LEBM_INLINE void store(double* p, VecD a) { __builtin_memcpy(p, &a, sizeof a); }
LEBM_INLINE VecF load_part(const float* p, int64_t count, VecF rest) {
  for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
  return rest;
}
LEBM_INLINE VecD load_part(const double* p, int64_t count, VecD rest) {
  for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
  return rest;
}
LEBM_INLINE void store_part(float* p, int64_t count, VecF a) {
  for (int64_t i = 0; i < count; ++i) p[i] = a[i];
}
LEBM_INLINE void store_part(double* p, int64_t count, VecD a) {
  for (int64_t i = 0; i < count; ++i) p[i] = a[i];
}
LEBM_INLINE VecF broadcast(float a) { return VecF{a, a, a, a}; }
LEBM_INLINE VecD broadcast(double a) { return VecD{a, a}; }

LEBM_INLINE VecF add(VecF a, VecF b) { return a + b; }
LEBM_INLINE VecD add(VecD a, VecD b) { return a + b; }
LEBM_INLINE VecF sub(VecF a, VecF b) { return a - b; }
LEBM_INLINE VecD sub(VecD a, VecD b) { return a - b; }
LEBM_INLINE VecF mul(VecF a, VecF b) { return a * b; }
LEBM_INLINE VecD mul(VecD a, VecD b) { return a * b; }
LEBM_INLINE VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
LEBM_INLINE VecD fma(VecD a, VecD b, VecD c) { return a * b + c; }
LEBM_INLINE VecF fnma(VecF a, VecF b, VecF c) { return c - a * b; }
LEBM_INLINE VecD fnma(VecD a, VecD b, VecD c) { return c - a * b; }
LEBM_INLINE VecF min(VecF a, VecF b) { return a < b ? a : b; }
LEBM_INLINE VecD min(VecD a, VecD b) { return a < b ? a : b; }
LEBM_INLINE VecF max(VecF a, VecF b) { return a > b ? a : b; }
LEBM_INLINE VecD max(VecD a, VecD b) { return a > b ? a : b; }

LEBM_INLINE VecF div(VecF a, VecF b) { return a / b; }
LEBM_INLINE VecD div(VecD a, VecD b) { return a / b; }
LEBM_INLINE VecF root(VecF a) {
  return VecF{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
              __builtin_sqrtf(a[3])};
}
LEBM_INLINE VecD root(VecD a) { return VecD{__builtin_sqrt(a[0]), __builtin_sqrt(a[1])}; }

LEBM_INLINE VecF select_equal(VecF a, VecF b, VecF yes, VecF no) { return a == b ? yes : no; }
LEBM_INLINE VecD select_equal(VecD a, VecD b, VecD yes, VecD no) { return a == b ? yes : no; }
LEBM_INLINE VecF select_less(VecF a, VecF b, VecF yes, VecF no) { return a < b ? yes : no; }
LEBM_INLINE VecD select_less(VecD a, VecD b, VecD yes, VecD no) { return a < b ? yes : no; }

LEBM_INLINE VecF keep_above(VecF a, VecF x, VecF low) { return (VecF)((VecU32)a & (x > low)); }
LEBM_INLINE VecD keep_above(VecD a, VecD x, VecD low) { return (VecD)((VecU64)a & (x > low)); }

LEBM_INLINE VecF fraction(VecF x, VecF& n) {
  const VecF magic = broadcast(12582912.0f);  // 1.5 2^23
  n = x + magic;
  return x - (n - magic);
}
LEBM_INLINE VecD fraction(VecD x, VecD& n) {
  const VecD magic = broadcast(6755399441055744.0);  // 1.5 2^52
  n = x + magic;
  return x - (n - magic);
}
LEBM_INLINE VecF scale_by_power(VecF a, VecF n) { return (VecF)((VecU32)a + ((VecU32)n << 23)); }
LEBM_INLINE VecD scale_by_power(VecD a, VecD n) { return (VecD)((VecU64)a + ((VecU64)n << 52)); }

constexpr bool kFused = false;
constexpr bool kSpecialised = false;
constexpr bool kScales = false;
constexpr int kTable = 0;
template <typename V>
LEBM_INLINE V in_register(V a) {
  return a;
}

LEBM_INLINE float sum(VecF a) { return (a[0] + a[2]) + (a[1] + a[3]); }
LEBM_INLINE double sum(VecD a) { return a[0] + a[1]; }
LEBM_INLINE float least(VecF a) {
  float left = a[0] < a[2] ? a[0] : a[2], right = a[1] < a[3] ? a[1] : a[3];
  return left < right ? left : right;
}
LEBM_INLINE double least(VecD a) { return a[0] < a[1] ? a[0] : a[1]; }

// See avx2.h.
constexpr int kGroup = 4;
constexpr int kSums = 12;

LEBM_END_TARGET
