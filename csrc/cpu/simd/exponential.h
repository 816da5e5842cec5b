// 2^x and 2^x - 1 on vectors.
//
// x = n + f with an integer n and |f| <= 1/2 (fraction). 2^f = 1 + f q(f) with a minimax polynomial
// q: the relative error of 2^x is 9.2e-8 in float, below 1e-16 in double. With the 1 kept apart,
// 2^x - 1 = 2^n f q(f) + (2^n - 1) keeps full relative accuracy at x = 0.
//
// x must not exceed the exponent range. At `lowest` and below, 2^x counts as 0. Weighted sums may
// be as small as 2^-10, so every posterior weight of at least 2^-64 (in double 2^-256) is kept.
// Were smaller ones kept too, their products would be subnormal numbers, which are slow, and
// latents far away would have a gradient.
#pragma once

#include "lanes.h"

LEBM_BEGIN_TARGET

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.6931471805599453094;

// Close to the largest number.
template <typename T>
constexpr double kMost = sizeof(T) == 4 ? 3.4e38 : 1.7e308;

// Where m lies too high, powers are computed that will not be used, but must be finite. Their
// exponents are cut off here. A power that is used has a smaller exponent.
constexpr double kMostOfExponent = 100;

template <typename T>
struct Exponent;

template <>
struct Exponent<float> {
  using Vec = VecF;
  static constexpr float epsilon = 1.1920929e-7f;
  static constexpr float lowest = -74.0f;
  static constexpr float normal = -125.0f;  // 2^normal is a normal number
  static constexpr float far = 1e4f;        // below every exponent of interest; finite
  static constexpr float infinity = __builtin_inff();
  static LEBM_INLINE Vec poly(Vec f) {
    Vec q = broadcast(1.326472712341653e-3f);
    q = fma(q, f, broadcast(9.671512644820635e-3f));
    q = fma(q, f, broadcast(5.550733743497388e-2f));
    q = fma(q, f, broadcast(0.24022242085262388f));
    return fma(q, f, broadcast(0.6931469775989929f));
  }
  static LEBM_INLINE Vec long_poly(Vec f) {
    Vec q = broadcast(1.535336190805480e-4f);
    q = fma(q, f, broadcast(1.339887441406562e-3f));
    q = fma(q, f, broadcast(9.61843735766943e-3f));
    q = fma(q, f, broadcast(5.550332471126018e-2f));
    q = fma(q, f, broadcast(0.24022647913628908f));
    return fma(q, f, broadcast(0.6931472028550665f));
  }
};

template <>
struct Exponent<double> {
  using Vec = VecD;
  static constexpr double epsilon = 2.220446049250313e-16;
  static constexpr double lowest = -266.0;
  static constexpr double normal = -1021.0;
  static constexpr double far = 1e4;
  static constexpr double infinity = __builtin_inf();
  static LEBM_INLINE Vec poly(Vec f) {
    Vec q = broadcast(2.572932417736230421e-11);
    q = fma(q, f, broadcast(4.455817908336064493e-10));
    q = fma(q, f, broadcast(7.054897304155499277e-9));
    q = fma(q, f, broadcast(1.01780570877339411e-7));
    q = fma(q, f, broadcast(1.321548680870556279e-6));
    q = fma(q, f, broadcast(1.525273384155677259e-5));
    q = fma(q, f, broadcast(1.540353039337073341e-4));
    q = fma(q, f, broadcast(1.33335581464064707e-3));
    q = fma(q, f, broadcast(9.618129107628479493e-3));
    q = fma(q, f, broadcast(5.550410866482162704e-2));
    q = fma(q, f, broadcast(0.2402265069591007123));
    return fma(q, f, broadcast(0.6931471805599453093));
  }
  static LEBM_INLINE Vec long_poly(Vec f) { return poly(f); }
};

template <typename T>
using Vec = typename Exponent<T>::Vec;

template <typename T>
constexpr int kLanes = sizeof(Vec<T>) / sizeof(T);

// kFloor false: the caller knows that x stays in range.
template <typename T, bool kFloor = true>
LEBM_INLINE Vec<T> exp2_of(Vec<T> x) {
  const Vec<T> low = broadcast(Exponent<T>::lowest);
  if constexpr (kFloor) x = max(x, low);
  Vec<T> n;
  const Vec<T> f = fraction(x, n);
  const Vec<T> value = scale_by_power(fma(Exponent<T>::poly(f), f, broadcast(T(1))), n);
  return kFloor ? keep_above(value, x, low) : value;
}

// 2^x for the common factor of a block, whose latents may have larger exponents: never 0.
template <typename T>
LEBM_INLINE Vec<T> factor_of(Vec<T> x) {
  return exp2_of<T, false>(max(x, broadcast(Exponent<T>::normal)));
}

// 2^x - 1, and 2^x in `value`. At small x the relative error of 2^x - 1 is that of q at 0, hence
// the longer polynomial in float.
template <typename T, bool kFloor = true>
LEBM_INLINE Vec<T> exp2m1_of(Vec<T> x, Vec<T>& value) {
  const Vec<T> low = broadcast(Exponent<T>::lowest);
  if constexpr (kFloor) x = max(x, low);
  Vec<T> n;
  const Vec<T> f = fraction(x, n);
  const Vec<T> power = scale_by_power(broadcast(T(1)), n);
  const Vec<T> rest = mul(Exponent<T>::long_poly(f), f);
  value = fma(power, rest, power);
  if constexpr (kFloor) value = keep_above(value, x, low);
  return fma(power, rest, sub(power, broadcast(T(1))));
}
template <typename T, bool kFloor = true>
LEBM_INLINE Vec<T> exp2m1_of(Vec<T> x) {
  Vec<T> unused;
  return exp2m1_of<T, kFloor>(x, unused);
}

// `value` where 2^x times the weight counts, 0 elsewhere.
template <typename T>
LEBM_INLINE Vec<T> weighted_power(Vec<T> value, Vec<T> x, Vec<T> log2_w) {
  return keep_above(value, add(x, log2_w), broadcast(Exponent<T>::lowest));
}

// 2^x for the loops over pairs, whose speed it bounds: 2^(x / kSteps) / kUnit of K vectors in
// lockstep. The caller accounts for both constants, once a sum. x / kSteps must be in range for
// operator(). bounded() takes any x: with kZero the result is 0 at `lowest` and below; without, it
// is 2^lowest, for sums alone. `lowest` is kLowest, or kNormal where 2^x is relative to a block's
// centre, about which all exponents may be low.
//
// On current processors the number of operations of any kind counts and, next, the length of the
// chain: some 90 operations are in flight, few where one chain takes forty cycles. Divided by its
// leading coefficient (kUnit), a polynomial starts with an addition, which has units of its own.
// With a table of 2^(k / 8) a cubic is enough, at a relative error of 9.3e-8: as many operations,
// but a chain that is a fifth shorter, and the product with the table's value may be one with the
// sum. The table's entries lack k 2^20, which n 2^20 brings with the exponent.
template <typename T, bool kTabled = sizeof(T) == 4 && kTable == 8, bool kScaled = kScales>
struct Exp2 {
  static constexpr T kSteps = 1, kLowest = Exponent<T>::lowest, kNormal = Exponent<T>::normal;
  static constexpr int kDegree = sizeof(T) == 4 ? 5 : 11;
  static constexpr double monic_float[] = {7.29115104675293, 41.84581756591797, 181.09864807128906,
                                           522.5490112304688, 753.8790893554688};
  static constexpr double monic_double[] = {
      15.875754214634945425, 228.46582414194548024, 2966.455549191905811,  34237.640252183266173,
      345761.31712604524589, 2992968.8158958418636, 21589706.341111394028, 124589449.0905613436,
      539233741.05012293326, 1555899688.1860298742, 2244688764.2666697851};
  static constexpr const double* monic = sizeof(T) == 4 ? monic_float : monic_double;
  static constexpr double kUnit = 1 / monic[kDegree - 1];

  Vec<T> coefficient[kDegree];

  LEBM_INLINE Exp2() {
    // Loading the constants again would cost more than the registers that hold them.
    for (int i = 0; i < kDegree; ++i) {
      const Vec<T> value = broadcast(T(monic[i]));
      coefficient[i] = kDegree < 6 ? in_register(value) : value;
    }
  }

  // The result is value(p, power).
  template <int K>
  LEBM_INLINE void operator()(const Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&power)[K]) const {
    Vec<T> f[K];
    for (int k = 0; k < K; ++k) f[k] = fraction(x[k], power[k]);
    for (int k = 0; k < K; ++k) p[k] = add(f[k], coefficient[0]);
    for (int i = 1; i < kDegree; ++i)
      for (int k = 0; k < K; ++k) p[k] = fma(p[k], f[k], coefficient[i]);
    for (int k = 0; k < K; ++k) p[k] = scale_by_power(p[k], power[k]);
  }
  template <bool kZero, int K>
  LEBM_INLINE void bounded(T lowest, Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&power)[K]) const {
    const Vec<T> low = broadcast(lowest);
    for (int k = 0; k < K; ++k) x[k] = max(x[k], low);
    (*this)(x, p, power);
    for (int k = 0; kZero && k < K; ++k) p[k] = keep_above(p[k], x[k], low);
  }
  static LEBM_INLINE Vec<T> value(Vec<T> p, Vec<T>) { return p; }
  static LEBM_INLINE Vec<T> add_to(Vec<T> total, Vec<T> p, Vec<T>) { return add(total, p); }
};

template <typename T>
struct Exp2<T, true, false> {
  // Entries are near 2^-13, for which kNormal must leave room.
  static constexpr T kSteps = 8, kLowest = kSteps * Exponent<T>::lowest,
                     kNormal = kSteps * (Exponent<T>::normal + 14);
  static constexpr double kUnit = 1;
  static constexpr double monic[] = {34.61973571777344, 799.0260009765625, 9222.0068359375};
  // 2^(k / 8) / monic[2]; monic[2] was chosen so that these are exact to 1.3e-8.
  alignas(32) static constexpr uint32_t power_of_step[] = {0x38e36847, 0x38e7fd4d, 0x38e7379b,
                                                           0x38e37496, 0x38e0cd20, 0x38df5ae3,
                                                           0x38df39dc, 0x38e08890};

  Vec<T> table, coefficient[3];

  LEBM_INLINE Exp2() {
    T entry[8];
    __builtin_memcpy(entry, power_of_step, sizeof entry);
    table = in_register(load(entry));
    for (int i = 0; i < 3; ++i) coefficient[i] = in_register(broadcast(T(monic[i])));
  }

  template <int K>
  LEBM_INLINE void operator()(const Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&power)[K]) const {
    Vec<T> f[K], n[K];
    for (int k = 0; k < K; ++k) f[k] = fraction(x[k], n[k]);
    for (int k = 0; k < K; ++k) p[k] = add(f[k], coefficient[0]);
    for (int k = 0; k < K; ++k) p[k] = fma(p[k], f[k], coefficient[1]);
    for (int k = 0; k < K; ++k) p[k] = fma(p[k], f[k], coefficient[2]);
    for (int k = 0; k < K; ++k) power[k] = add_steps(look_up(table, n[k]), n[k]);
  }
  template <bool kZero, int K>
  LEBM_INLINE void bounded(T lowest, Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&power)[K]) const {
    const Vec<T> low = broadcast(lowest);
    for (int k = 0; k < K; ++k) x[k] = max(x[k], low);
    (*this)(x, p, power);
    for (int k = 0; kZero && k < K; ++k) power[k] = keep_above(power[k], x[k], low);
  }
  static LEBM_INLINE Vec<T> value(Vec<T> p, Vec<T> power) { return mul(p, power); }
  static LEBM_INLINE Vec<T> add_to(Vec<T> total, Vec<T> p, Vec<T> power) {
    return fma(p, power, total);
  }
};

// Where one operation scales by 2^floor(x), the polynomial is of 2^f on [0, 1), and no x is out of
// range. Additions have no units of their own there.
template <typename T>
struct Exp2<T, false, true> {
  static constexpr T kSteps = 1, kLowest = Exponent<T>::lowest, kNormal = Exponent<T>::normal;
  static constexpr double kUnit = 1;
  static constexpr int kDegree = sizeof(T) == 4 ? 5 : 11;
  static constexpr double of_float[] = {1.8775764619931579e-3, 8.989336900413036e-3,
                                        5.5826302617788315e-2, 0.24015358090400696,
                                        0.6931530833244324,    0.9999999403953552};
  static constexpr double of_double[] = {
      6.272434246796341980e-10, 6.554457289088811304e-9, 1.025445734717694590e-7,
      1.320819350030779861e-6,  1.525319024842225148e-5, 1.540351144655561430e-4,
      1.333355866157485609e-3,  9.618129098792643336e-3, 5.550410866571113746e-2,
      0.2402265069590547138,    0.6931471805599462346,   0.99999999999999999695};
  static constexpr const double* factor = sizeof(T) == 4 ? of_float : of_double;

  Vec<T> coefficient[kDegree + 1];

  LEBM_INLINE Exp2() {
    for (int i = 0; i <= kDegree; ++i) {
      const Vec<T> value = broadcast(T(factor[i]));
      coefficient[i] = kDegree < 6 ? in_register(value) : value;
    }
  }

  template <int K>
  LEBM_INLINE void polynomial(const Vec<T> (&x)[K], Vec<T> (&p)[K]) const {
    Vec<T> f[K];
    for (int k = 0; k < K; ++k) f[k] = above_floor(x[k]);
    for (int k = 0; k < K; ++k) p[k] = fma(coefficient[0], f[k], coefficient[1]);
    for (int i = 2; i <= kDegree; ++i)
      for (int k = 0; k < K; ++k) p[k] = fma(p[k], f[k], coefficient[i]);
  }
  template <int K>
  LEBM_INLINE void operator()(const Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&)[K]) const {
    polynomial(x, p);
    for (int k = 0; k < K; ++k) p[k] = scale_by_floor(p[k], x[k]);
  }
  template <bool kZero, int K>
  LEBM_INLINE void bounded(T lowest, Vec<T> (&x)[K], Vec<T> (&p)[K], Vec<T> (&)[K]) const {
    polynomial(x, p);
    for (int k = 0; k < K; ++k) p[k] = scale_by_floor(p[k], x[k], broadcast(lowest));
  }
  static LEBM_INLINE Vec<T> value(Vec<T> p, Vec<T>) { return p; }
  static LEBM_INLINE Vec<T> add_to(Vec<T> total, Vec<T> p, Vec<T>) { return add(total, p); }
};

// Phi(x) = (e^x (x - 1) + 1) / x^2 for |x| < 1, by its power series (19 terms: below 1e-17).
template <typename T>
LEBM_INLINE Vec<T> phi_near(Vec<T> x) {
  // sum_{k >= 2} (k - 1) / k! x^(k - 2)
  static constexpr double coefficient[] = {1.0 / 2,
                                           1.0 / 3,
                                           1.0 / 8,
                                           1.0 / 30,
                                           1.0 / 144,
                                           1.0 / 840,
                                           1.0 / 5760,
                                           1.0 / 45360,
                                           1.0 / 403200,
                                           1.0 / 3991680,
                                           11.0 / 479001600,
                                           12.0 / 6227020800,
                                           13.0 / 87178291200.0,
                                           14.0 / 1307674368000.0,
                                           15.0 / 20922789888000.0,
                                           16.0 / 355687428096000.0,
                                           17.0 / 6402373705728000.0,
                                           18.0 / 121645100408832000.0,
                                           19.0 / 2432902008176640000.0};
  constexpr int terms = sizeof(T) == 4 ? 11 : 19;
  Vec<T> series = broadcast(T(coefficient[terms - 1]));
  for (int k = terms - 2; k >= 0; --k) series = fma(series, x, broadcast(T(coefficient[k])));
  return series;
}

LEBM_END_TARGET
