// Vectors of AVX-512 (F, DQ): 16 floats or 8 doubles. See avx2.h.
#pragma once

#include "../target.h"

LEBM_BEGIN_TARGET

using VecF = __m512;
using VecD = __m512d;

LEBM_INLINE VecF load(const float* p) { return _mm512_loadu_ps(p); }
LEBM_INLINE VecD load(const double* p) { return _mm512_loadu_pd(p); }
LEBM_INLINE void store(float* p, VecF a) { _mm512_storeu_ps(p, a); }
LEBM_INLINE void store(double* p, VecD a) { _mm512_storeu_pd(p, a); }
LEBM_INLINE VecF load_part(const float* p, int64_t count, VecF rest) {
  return _mm512_mask_loadu_ps(rest, __mmask16((1u << count) - 1), p);
}
LEBM_INLINE VecD load_part(const double* p, int64_t count, VecD rest) {
  return _mm512_mask_loadu_pd(rest, __mmask8((1u << count) - 1), p);
}
LEBM_INLINE void store_part(float* p, int64_t count, VecF a) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), a);
}
LEBM_INLINE void store_part(double* p, int64_t count, VecD a) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), a);
}
LEBM_INLINE VecF broadcast(float a) { return _mm512_set1_ps(a); }
LEBM_INLINE VecD broadcast(double a) { return _mm512_set1_pd(a); }

LEBM_INLINE VecF add(VecF a, VecF b) { return _mm512_add_ps(a, b); }
LEBM_INLINE VecD add(VecD a, VecD b) { return _mm512_add_pd(a, b); }
LEBM_INLINE VecF sub(VecF a, VecF b) { return _mm512_sub_ps(a, b); }
LEBM_INLINE VecD sub(VecD a, VecD b) { return _mm512_sub_pd(a, b); }
LEBM_INLINE VecF mul(VecF a, VecF b) { return _mm512_mul_ps(a, b); }
LEBM_INLINE VecD mul(VecD a, VecD b) { return _mm512_mul_pd(a, b); }
LEBM_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
LEBM_INLINE VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
LEBM_INLINE VecF fnma(VecF a, VecF b, VecF c) { return _mm512_fnmadd_ps(a, b, c); }
LEBM_INLINE VecD fnma(VecD a, VecD b, VecD c) { return _mm512_fnmadd_pd(a, b, c); }
LEBM_INLINE VecF min(VecF a, VecF b) { return _mm512_min_ps(a, b); }
LEBM_INLINE VecD min(VecD a, VecD b) { return _mm512_min_pd(a, b); }
LEBM_INLINE VecF max(VecF a, VecF b) { return _mm512_max_ps(a, b); }
LEBM_INLINE VecD max(VecD a, VecD b) { return _mm512_max_pd(a, b); }

LEBM_INLINE VecF div(VecF a, VecF b) { return _mm512_div_ps(a, b); }
LEBM_INLINE VecD div(VecD a, VecD b) { return _mm512_div_pd(a, b); }
LEBM_INLINE VecF root(VecF a) { return _mm512_sqrt_ps(a); }
LEBM_INLINE VecD root(VecD a) { return _mm512_sqrt_pd(a); }

LEBM_INLINE VecF select_equal(VecF a, VecF b, VecF yes, VecF no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes);
}
LEBM_INLINE VecD select_equal(VecD a, VecD b, VecD yes, VecD no) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), no, yes);
}
LEBM_INLINE VecF select_less(VecF a, VecF b, VecF yes, VecF no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
LEBM_INLINE VecD select_less(VecD a, VecD b, VecD yes, VecD no) {
  return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), no, yes);
}

LEBM_INLINE VecF keep_above(VecF a, VecF x, VecF low) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_GT_OQ), a);
}
LEBM_INLINE VecD keep_above(VecD a, VecD x, VecD low) {
  return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, low, _CMP_GT_OQ), a);
}

LEBM_INLINE VecF fraction(VecF x, VecF& n) {
  n = _mm512_castsi512_ps(_mm512_cvtps_epi32(x));
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);
}
LEBM_INLINE VecD fraction(VecD x, VecD& n) {
  n = _mm512_castsi512_pd(_mm512_cvtpd_epi64(x));
  return _mm512_reduce_pd(x, _MM_FROUND_TO_NEAREST_INT);
}
LEBM_INLINE VecF scale_by_power(VecF a, VecF n) {
  const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), bits));
}
LEBM_INLINE VecD scale_by_power(VecD a, VecD n) {
  const __m512i bits = _mm512_slli_epi64(_mm512_castpd_si512(n), 52);
  return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), bits));
}

// x - floor(x)
LEBM_INLINE VecF above_floor(VecF x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF); }
LEBM_INLINE VecD above_floor(VecD x) { return _mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF); }
// a 2^floor(x), and the same where x > low, 0 elsewhere
LEBM_INLINE VecF scale_by_floor(VecF a, VecF x) { return _mm512_scalef_ps(a, x); }
LEBM_INLINE VecD scale_by_floor(VecD a, VecD x) { return _mm512_scalef_pd(a, x); }
LEBM_INLINE VecF scale_by_floor(VecF a, VecF x, VecF low) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_GT_OQ), a, x);
}
LEBM_INLINE VecD scale_by_floor(VecD a, VecD x, VecD low) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, low, _CMP_GT_OQ), a, x);
}

constexpr bool kScales = true;
constexpr bool kFused = true;
constexpr bool kSpecialised = true;
constexpr int kTable = 0;
template <typename V>
LEBM_INLINE V in_register(V a) {
  asm("" : "+v"(a));
  return a;
}

LEBM_INLINE float sum(VecF a) { return _mm512_reduce_add_ps(a); }
LEBM_INLINE double sum(VecD a) { return _mm512_reduce_add_pd(a); }
LEBM_INLINE float least(VecF a) { return _mm512_reduce_min_ps(a); }
LEBM_INLINE double least(VecD a) { return _mm512_reduce_min_pd(a); }

// Queries whose sums over dimensions are held in registers, each with three vectors of latents
constexpr int kGroup = 8;
// Sums that registers hold beside what they are made of.
constexpr int kSums = 24;

LEBM_END_TARGET
