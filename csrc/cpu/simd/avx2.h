// Vectors of AVX2 with FMA: 8 floats or 4 doubles.
// The same functions exist for every instruction set; the kernels use nothing else.
#pragma once

#include "../target.h"

LEBM_BEGIN_TARGET

using VecF = __m256;
using VecD = __m256d;

LEBM_INLINE VecF load(const float* p) { return _mm256_loadu_ps(p); }
LEBM_INLINE VecD load(const double* p) { return _mm256_loadu_pd(p); }
LEBM_INLINE void store(float* p, VecF a) { _mm256_storeu_ps(p, a); }
LEBM_INLINE void store(double* p, VecD a) { _mm256_storeu_pd(p, a); }
LEBM_INLINE VecF broadcast(float a) { return _mm256_set1_ps(a); }
LEBM_INLINE VecD broadcast(double a) { return _mm256_set1_pd(a); }

LEBM_INLINE VecF add(VecF a, VecF b) { return _mm256_add_ps(a, b); }
LEBM_INLINE VecD add(VecD a, VecD b) { return _mm256_add_pd(a, b); }
LEBM_INLINE VecF sub(VecF a, VecF b) { return _mm256_sub_ps(a, b); }
LEBM_INLINE VecD sub(VecD a, VecD b) { return _mm256_sub_pd(a, b); }
LEBM_INLINE VecF mul(VecF a, VecF b) { return _mm256_mul_ps(a, b); }
LEBM_INLINE VecD mul(VecD a, VecD b) { return _mm256_mul_pd(a, b); }
// a b + c, and c - a b
LEBM_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
LEBM_INLINE VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
LEBM_INLINE VecF fnma(VecF a, VecF b, VecF c) { return _mm256_fnmadd_ps(a, b, c); }
LEBM_INLINE VecD fnma(VecD a, VecD b, VecD c) { return _mm256_fnmadd_pd(a, b, c); }
LEBM_INLINE VecF min(VecF a, VecF b) { return _mm256_min_ps(a, b); }
LEBM_INLINE VecD min(VecD a, VecD b) { return _mm256_min_pd(a, b); }
LEBM_INLINE VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
LEBM_INLINE VecD max(VecD a, VecD b) { return _mm256_max_pd(a, b); }

LEBM_INLINE VecF root(VecF a) { return _mm256_sqrt_ps(a); }
LEBM_INLINE VecD root(VecD a) { return _mm256_sqrt_pd(a); }

// yes where a == b (a < b), no elsewhere
LEBM_INLINE VecF select_equal(VecF a, VecF b, VecF yes, VecF no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
LEBM_INLINE VecD select_equal(VecD a, VecD b, VecD yes, VecD no) {
  return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_EQ_OQ));
}
LEBM_INLINE VecF select_less(VecF a, VecF b, VecF yes, VecF no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
LEBM_INLINE VecD select_less(VecD a, VecD b, VecD yes, VecD no) {
  return _mm256_blendv_pd(no, yes, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}

// x - n, and in the low bits of `whole` the integer n nearest to x. Where nothing converts to
// integers, adding 1.5 2^52 brings n there.
LEBM_INLINE VecF split(VecF x, VecF& whole) {
  whole = _mm256_castsi256_ps(_mm256_cvtps_epi32(x));
  return _mm256_sub_ps(x, _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LEBM_INLINE VecD split(VecD x, VecD& whole) {
  const VecD magic = _mm256_set1_pd(6755399441055744.0);
  whole = _mm256_add_pd(x, magic);
  return _mm256_sub_pd(x, _mm256_sub_pd(whole, magic));
}
// a 2^n
LEBM_INLINE VecF scale_by_power(VecF a, VecF whole) {
  __m256i n = _mm256_slli_epi32(_mm256_castps_si256(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
}
LEBM_INLINE VecD scale_by_power(VecD a, VecD whole) {
  __m256i n = _mm256_slli_epi64(_mm256_castpd_si256(whole), 52);
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), n));
}

// Entries of a table of floats that one operation looks up; entry n mod 8; a's bits plus n 2^20.
constexpr bool kFused = true;  // whether fma rounds once
constexpr int kTable = 8;
LEBM_INLINE VecF look_up(VecF table, VecF whole) {
  return _mm256_permutevar8x32_ps(table, _mm256_castps_si256(whole));
}
LEBM_INLINE VecF add_steps(VecF a, VecF whole) {
  __m256i n = _mm256_slli_epi32(_mm256_castps_si256(whole), 20);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
}

// a, of which the compiler forgets that it is a constant that could be loaded again
template <typename V>
LEBM_INLINE V in_register(V a) {
  asm("" : "+x"(a));
  return a;
}

LEBM_INLINE float sum(VecF a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
LEBM_INLINE double sum(VecD a) {
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
LEBM_INLINE float least(VecF a) {
  __m128 s = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_min_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_min_ss(s, _mm_movehdup_ps(s)));
}
LEBM_INLINE double least(VecD a) {
  __m128d s = _mm_min_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_min_sd(s, _mm_unpackhi_pd(s, s)));
}

LEBM_END_TARGET
