// The regime of a query: how large its exponents beta (E - m) are, and how they are summed.
#pragma once

#include "common.h"
#include "simd/exponential.h"

LEBM_BEGIN_TARGET

// The row pass adds two to the regimes: kSlope, a further pass for dF/dbeta (rows/slope.h), and
// kSkip, a query that is invalid or finished.
enum Regime : unsigned char {
  kWarm,   // sums of exp(-beta (E - m))
  kSmall,  // exponents so small that exp(-beta (E - m)) - 1 is summed instead
  kHot,    // beta = 0, or exponents below a rounding: E - m is summed
  kCold,   // beta = inf: only the minima count
  kRegimes,
  kSlope = kRegimes,
  kSkip
};

// A warm query with L above this is small: a relative error of its sum would be one of F - m.
constexpr double kSmallL = -1.0;

// Whether exponents can't be told from those at beta = inf, because their unit overflows.
template <typename T>
LEBM_INLINE bool is_cold(double beta) {
  return !is_finite(T(beta * kLog2E));
}

LEBM_END_TARGET
