// Posterior weights straight from the registers in which a tile's energies are summed:
//
//     p[q][j] = 2^(-rate (E - m) - log2_mass)    for queries [kWideTile], warm and without
//                                                log-weights
//
// For values e of a source (E = base + factor e) the exponent is by e + rest, one operation. `rest`
// is rounded, and may be large; what the rounding and the exponential leave out is a factor common
// to a query's powers, in double. Where fma rounds twice, an origin is subtracted first.
#pragma once

#include "energy.h"

LEBM_BEGIN_TARGET

// Beyond this exponent the factor would be far from 1.
constexpr double kMostOfRest = 0x1p23;

// 2^x; x is nearly always small.
LEBM_INLINE double exp2_near(double x) {
  const double y = x * kLn2;
  return y < 1e-4 && y > -1e-4 ? 1 + y * (1 + y * (0.5 + y / 6)) : __builtin_exp2(x);
}

template <typename T>
struct TilePowers {
  T by[kWideTile], origin[kWideTile], rest[kWideTile];
  double factor[kWideTile];

  // Returns whether the query's exponents can be taken this way.
  template <typename Source>
  bool set(const Source& source, int64_t q, T rate, double shift, double log2_mass) {
    constexpr double kSteps = Exp2<T>::kSteps;
    const double above = shift - double(source.base(q)), slope = double(rate) * Source::kFactor;
    origin[q] = kFused ? T(0) : T(above / Source::kFactor);
    const double exponent = double(rate) * (above - Source::kFactor * double(origin[q]));
    by[q] = T(-kSteps * slope);
    rest[q] = T(kSteps * (exponent - log2_mass));
    factor[q] = Exp2<T>::kUnit * exp2_near(exponent - log2_mass - double(rest[q]) / kSteps);
    return is_finite(above) && slope < kMost<T> / kSteps && __builtin_fabs(rest[q]) < kMostOfRest;
  }
  // The powers of K vectors of values, without the query's factor: value(p, scale).
  template <bool kZero, int K>
  LEBM_INLINE void take(const Exp2<T>& power, int64_t q, const Vec<T> (&e)[K], Vec<T> (&p)[K],
                        Vec<T> (&scale)[K]) const {
    const Vec<T> slope = broadcast(by[q]), from = broadcast(origin[q]), to = broadcast(rest[q]);
    Vec<T> x[K];
    for (int k = 0; k < K; ++k)
      x[k] = kFused ? fma(e[k], slope, to) : add(mul(sub(e[k], from), slope), to);
    power.template bounded<kZero>(Exp2<T>::kLowest, x, p, scale);
  }
};

LEBM_END_TARGET
