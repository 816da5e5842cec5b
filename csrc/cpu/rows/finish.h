// The results of a query from its sums: F = m - L / beta, the state and the slopes; see sums.h.
#pragma once

#include "slope.h"
#include "tile.h"

LEBM_BEGIN_TARGET

// KL = -beta <E - m> - L is used where it is more than this fraction of L and of 1. Its error is a
// rounding of both: L is the logarithm of a sum.
constexpr double kMostCancelled = 1.0 / 16;

// Whether a query that is not summed is so far away that its energies are infinite rather than NaN.
template <typename T>
static bool is_out_of_reach(const Grid<T>& grid, const Query<T>& q) {
  bool is_nan = grid.has_nan || !(q.beta >= 0);
  for (int64_t d = 0; d < grid.D; ++d) is_nan |= q.y[d] != q.y[d] || q.s[d] != q.s[d];
  return !is_nan;
}

// Writes <E>, KL and dF/dbeta from the sums of the first pass. Hot queries have no KL yet.
template <typename T>
static void finish_energy(const RowOutputs<T>& out, int64_t at, const Query<T>& q, const Sums<T>& a,
                          double L, double gap) {
  // The sum is of exponents, in bits.
  const bool sums_excess = (q.regime == kWarm || (q.regime == kSmall && out.energy)) && q.rate > 0;
  const double excess = sums_excess ? -(a.excess / a.mass) / q.rate : 0;
  if (out.energy) out.energy[at] = T(a.shift + (q.regime == kHot ? gap : excess));
  double entropy = 0;
  if (q.regime == kCold) entropy = -L;
  if (sums_excess) entropy = kLn2 * a.excess / a.mass - L;
  entropy = entropy < 0 ? 0 : entropy;
  if (out.relative_entropy) out.relative_entropy[at] = T(entropy);
  if (out.slope_beta) out.slope_beta[at] = q.regime == kCold ? 0 : -(entropy / q.beta) / q.beta;
}

// Writes a query's results from its sums; sets the regime of its next pass.
template <typename T>
static void finish(const Pass<T>& pass, int64_t m, const Query<T>& q, const Sums<T>& a,
                   const Vectors& v) {
  const int64_t D = pass.grid->D, at = pass.b * pass.problem->M + m;
  const RowOutputs<T>& out = *pass.out;
  double* state = out.state + kStateSize * at;
  unsigned char& regime = pass.regime[m];
  if (q.regime == kSlope) {
    const double z = q.unit, rate = q.beta / z, total = pass.grid->total;
    const double curvature = curvature_about(rate, a.sum / total, a.mass / total);
    if (out.slope_beta) out.slope_beta[at] = -(curvature / z) / z;
    if (out.relative_entropy) out.relative_entropy[at] = T(rate * rate * curvature);
    regime = kSkip;
    return;
  }
  auto set_all = [&](T value) {
    for (int64_t d = 0; d < D; ++d) {
      if (out.slope_y) out.slope_y[at * D + d] = value;
      if (out.slope_scale) out.slope_scale[at * D + d] = value;
      if (out.mean) out.mean[at * D + d] = value;
    }
    if (out.slope_beta) out.slope_beta[at] = value;
    if (out.energy) out.energy[at] = value;
    if (out.relative_entropy) out.relative_entropy[at] = value;
  };
  if (q.regime == kSkip || !(a.shift < double(kAbsent<T>))) {
    // A NaN somewhere, or every energy is infinite or overflows.
    const bool far = q.regime != kSkip || is_out_of_reach(*pass.grid, q);
    const T value = far ? T(__builtin_inf()) : T(__builtin_nan(""));
    out.free_energy[at] = value;
    state[kStateShift] = value;
    state[kStateLogNormaliser] = state[kStateGap] = state[kStateRest] = 0;
    if (out.index) out.index[at] = 0;
    set_all(T(__builtin_nan("")));
    regime = kSkip;
    return;
  }
  const double total = a.sum / pass.grid->total;
  double L = 0, gap = 0;
  switch (q.regime) {
    case kWarm:
      L = __builtin_log(total);
      if (pass.grid->weighted) L += a.offset * kLn2;
      gap = -L / q.beta;
      break;
    case kSmall:
      L = total > -0.5 ? __builtin_log1p(total) : __builtin_log(a.mass / pass.grid->total);
      gap = -L / q.beta;
      break;
    case kHot:
      gap = pass.grid->has_infinite ? __builtin_inf() : -total / q.unit;
      break;
    default:
      L = __builtin_log(total);
      if (pass.grid->weighted) L += a.offset * kLn2;
      break;
  }
  out.free_energy[at] = T(a.shift + gap);
  state[kStateShift] = a.shift;
  state[kStateLogNormaliser] = L;
  state[kStateGap] = gap;
  state[kStateRest] = 0;
  if (q.regime == kCold) {
    // Where one latent has the minimum, this makes its p exactly 1.
    const double bits = __builtin_log2(a.sum);
    state[kStateRest] = pass.grid->weighted ? bits + (a.offset - __builtin_rint(a.offset)) : bits;
  }
  regime = kSkip;
  // A sum's rounding is one of F by 1 / beta, which shows only if F is not larger.
  const double size = q.beta * (a.shift + gap);
  if (q.regime == kWarm && L > kSmallL && size < 1 && size > -1) regime = kSmall;
  if (pass.first) finish_energy(out, at, q, a, L, gap);
  const bool curved = out.slope_beta || (out.relative_entropy && q.beta > 0);
  if (curved && regime == kSkip && q.regime != kCold) {
    // The first pass's KL is kept where little of it cancelled.
    const double entropy = out.relative_entropy ? double(out.relative_entropy[at])
                                                : -out.slope_beta[at] * q.beta * q.beta;
    const double size_of_L = L < -1 ? -L : 1.0;
    if (!(entropy > kMostCancelled * size_of_L)) regime = kSlope;
  }
  if (!pass.first) return;
  if (out.index) out.index[at] = a.index;
  for (int64_t d = 0; d < D; ++d) {
    if (out.slope_y) out.slope_y[at * D + d] = T(2 * v.residual[d] / a.mass.value);
    if (out.slope_scale) out.slope_scale[at * D + d] = T(-2 * v.stretch[d] / a.mass.value);
    if (out.mean) out.mean[at * D + d] = T(v.mean[d] / a.mass.value);
  }
}

LEBM_END_TARGET
