// Exponentials of a tile's energies while these are in the first cache:
//
//     p[q][j] = 2^(-rate (E - m) - log2_mass)    for queries [kWideTile], warm and without
//                                                log-weights
//
// In float with a fused FMA the exponent is `by * E + rest`, one operation. `rest` may be large,
// and its rounding multiplies all powers of a query by one number. `factor` undoes that, in double.
// In double no wider type could, and without a fused FMA `by * E` is rounded as well: there the
// exponent is `by * (E - m) + rest`.
#pragma once

#include "energy.h"

LEBM_BEGIN_TARGET

// A larger float is rounded by half a step or more.
constexpr double kMostOfRest = 0x1p23;

// 2^x; x is nearly always small.
LEBM_INLINE double exp2_near(double x) {
  const double y = x * kLn2;
  return y < 1e-4 && y > -1e-4 ? 1 + y * (1 + y * (0.5 + y / 6)) : __builtin_exp2(x);
}

template <typename T>
struct TilePowers {
  static constexpr bool kInOne = kFused && sizeof(T) == 4;

  T by[kWideTile], origin[kWideTile], rest[kWideTile];
  double factor[kWideTile];

  // Returns whether the query's exponents can be taken this way.
  bool set(int64_t q, T rate, double shift, double log2_mass) {
    constexpr double kSteps = Exp2<T>::kSteps;
    origin[q] = kInOne ? T(0) : T(shift);
    const double exponent = double(rate) * (shift - double(origin[q])) - log2_mass;
    by[q] = T(-kSteps * double(rate));
    rest[q] = T(kSteps * exponent);
    factor[q] = Exp2<T>::kUnit * exp2_near(exponent - double(rest[q]) / kSteps);
    return is_finite(shift) && rate < T(kMost<T> / kSteps) && __builtin_fabs(rest[q]) < kMostOfRest;
  }
  // The exponent of an energy, in steps.
  T exponent(int64_t q, T energy) const { return (energy - origin[q]) * by[q] + rest[q]; }
  // The powers of K vectors of energies, without the query's factor: value(p, scale).
  template <bool kZero, int K>
  LEBM_INLINE void take(const Exp2<T>& power, int64_t q, const Vec<T> (&e)[K], Vec<T> (&p)[K],
                        Vec<T> (&scale)[K]) const {
    const Vec<T> slope = broadcast(by[q]), from = broadcast(origin[q]), to = broadcast(rest[q]);
    Vec<T> x[K];
    for (int k = 0; k < K; ++k) x[k] = fma(kInOne ? e[k] : sub(e[k], from), slope, to);
    for (int k = 0; k < K && !kScales; ++k)
      x[k] = min(x[k], broadcast(T(Exp2<T>::kSteps * kMostOfExponent)));
    power.template bounded<kZero>(Exp2<T>::kLowest, x, p, scale);
  }
};

LEBM_END_TARGET
