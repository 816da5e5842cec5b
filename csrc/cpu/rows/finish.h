// The results of a query from its sums: F = m - L / beta, the state and the slopes; see sums.h.
#pragma once

#include "slope.h"
#include "tile.h"

LEBM_BEGIN_TARGET

// KL = -beta <E - m> - L is used where it is more than this fraction of |L|.
constexpr double kMostCancelled = 0.25;

// Whether a query that is not summed is so far away that its energies are infinite rather than NaN.
template <typename T>
static bool is_out_of_reach(const Grid<T>& grid, const Query<T>& q) {
  bool is_nan = grid.has_nan || !(q.beta >= 0);
  for (int64_t d = 0; d < grid.D; ++d) is_nan |= q.y[d] != q.y[d] || q.s[d] != q.s[d];
  return !is_nan;
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
    out.slope_beta[at] =
        T(slope_about(q.beta, a.sum / pass.grid->total, a.mass / pass.grid->total));
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
      gap = pass.grid->has_infinite ? __builtin_inf() : -total;
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
  if ((q.regime == kSmall || q.regime == kHot) && out.slope_beta) {
    // The first pass's KL is kept where little of it cancelled.
    const double relative_entropy = pass.first ? 0 : -double(out.slope_beta[at]) * q.beta * q.beta;
    if (!(relative_entropy > kMostCancelled * (L < 0 ? -L : L))) regime = kSlope;
  }
  if (!pass.first) return;
  if (out.index) out.index[at] = a.index;
  if (out.slope_beta) {
    const double entropy = kLn2 * a.excess / a.sum - L;
    out.slope_beta[at] =
        q.regime == kWarm ? T(-(entropy > 0 ? entropy : 0) / q.beta / q.beta) : T(0);
  }
  for (int64_t d = 0; d < D; ++d) {
    if (out.slope_y) out.slope_y[at * D + d] = T(2 * v.residual[d] / a.mass.value);
    if (out.slope_scale) out.slope_scale[at * D + d] = T(-2 * v.stretch[d] / a.mass.value);
    if (out.mean) out.mean[at * D + d] = T(v.mean[d] / a.mass.value);
  }
}

LEBM_END_TARGET
