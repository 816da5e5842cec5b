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
// The first `count` numbers at p, 0 < count < all lanes, then `rest`; and the first `count` lanes.
LEBM_INLINE __m256i lanes_before(float, int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LEBM_INLINE __m256i lanes_before(double, int64_t count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
LEBM_INLINE VecF load_part(const float* p, int64_t count, VecF rest) {
  const __m256i mask = lanes_before(0.0f, count);
  return _mm256_blendv_ps(rest, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
LEBM_INLINE VecD load_part(const double* p, int64_t count, VecD rest) {
  const __m256i mask = lanes_before(0.0, count);
  return _mm256_blendv_pd(rest, _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask));
}
LEBM_INLINE void store_part(float* p, int64_t count, VecF a) {
  _mm256_maskstore_ps(p, lanes_before(0.0f, count), a);
}
LEBM_INLINE void store_part(double* p, int64_t count, VecD a) {
  _mm256_maskstore_pd(p, lanes_before(0.0, count), a);
}
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

LEBM_INLINE VecF div(VecF a, VecF b) { return _mm256_div_ps(a, b); }
LEBM_INLINE VecD div(VecD a, VecD b) { return _mm256_div_pd(a, b); }
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

// a where x > low, 0 elsewhere
LEBM_INLINE VecF keep_above(VecF a, VecF x, VecF low) {
  return _mm256_and_ps(a, _mm256_cmp_ps(x, low, _CMP_GT_OQ));
}
LEBM_INLINE VecD keep_above(VecD a, VecD x, VecD low) {
  return _mm256_and_pd(a, _mm256_cmp_pd(x, low, _CMP_GT_OQ));
}

// x - n for the integer n nearest to x; n is returned in the low bits of each lane. Without an
// instruction that converts to integers, adding 1.5 2^52 moves n there.
LEBM_INLINE VecF fraction(VecF x, VecF& n) {
  n = _mm256_castsi256_ps(_mm256_cvtps_epi32(x));
  return _mm256_sub_ps(x, _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LEBM_INLINE VecD fraction(VecD x, VecD& n) {
  const VecD magic = _mm256_set1_pd(6755399441055744.0);
  n = _mm256_add_pd(x, magic);
  return _mm256_sub_pd(x, _mm256_sub_pd(n, magic));
}
// a 2^n
LEBM_INLINE VecF scale_by_power(VecF a, VecF n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits));
}
LEBM_INLINE VecD scale_by_power(VecD a, VecD n) {
  const __m256i bits = _mm256_slli_epi64(_mm256_castpd_si256(n), 52);
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), bits));
}

constexpr bool kFused = true;  // whether fma rounds once
// Whether the pair loops are compiled for each combination of flags. If not, one loop that is right
// for all of them serves: slower, and much less to compile.
constexpr bool kSpecialised = true;
// Whether one operation multiplies by 2^floor(x), see avx512.h.
constexpr bool kScales = false;
// Entries of a table of floats that one operation looks up; look_up takes entry n mod 8, add_steps
// adds n 2^20 to the bits of a.
constexpr int kTable = 8;
LEBM_INLINE VecF look_up(VecF table, VecF n) {
  return _mm256_permutevar8x32_ps(table, _mm256_castps_si256(n));
}
LEBM_INLINE VecF add_steps(VecF a, VecF n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(n), 20);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits));
}

// a, hidden from the compiler, which would otherwise load a constant again instead of keeping it
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

// Queries whose sums over dimensions are held in registers, each with three vectors of latents
constexpr int kGroup = 4;
// Sums that registers hold beside what they are made of.
constexpr int kSums = 12;

LEBM_END_TARGET
