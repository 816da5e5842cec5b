// Which regime a query's exponents are in.
#pragma once

#include "common.h"
#include "simd/exponential.h"

LEBM_BEGIN_TARGET

// kSmall is wanted where L exceeds this: below, a relative error of the sum is one of F - m.
constexpr double kSmallL = -1.0;

// Whether exponents cannot be told from those at beta = inf, because their unit overflows.
template <typename T>
LEBM_INLINE bool is_cold(double beta) {
  return !is_finite(T(beta * kLog2E));
}

LEBM_END_TARGET
