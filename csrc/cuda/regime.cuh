// The regime of a query decides which row passes sum it.
//
//   first pass    every query; the result is final for warm and invalid ones
//   second pass   hot queries, whose F - m the first pass loses to rounding, and cold queries
//   third pass    dF/dbeta of hot queries, where it is wanted
#pragma once

#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "load.cuh"
#include "row_task.cuh"

namespace lebm::cuda {

enum class RowPass { kFirst, kSecond, kThird };

enum class Regime { kWarm, kHot, kCold, kInvalid };

// A query is hot if its log-normaliser L of the first pass is above this: all its exponents are
// small, and F is too close to m for log sum exp to resolve F - m.
constexpr double kHotAbove = -0.5;

// It stays hot if the L of the second pass, which is more exact, lies between these two. Then
// dF/dbeta gets the third pass, because <E> - F is smaller still. A larger L means a shift far
// above the least energy: a poor shift, not a hot query. Without log-weights the shift is the
// nearest latent of the sample, and the L of the first pass already shows that; with log-weights
// the shift need not be.
constexpr double kStillHotAbove = -0.6, kHotBelow = 0.7;

// Whether beta is a number >= 0, and y and the scale are finite.
template <typename T>
__device__ bool is_valid(const Problem<T>& problem, int64_t b, int64_t m) {
  bool valid = load(problem.beta, b, m) >= T(0);
  for (int64_t d = 0; d < problem.D; ++d) {
    valid = valid && is_finite(load(problem.y, b, m, d));
    if (problem.scale.data) valid = valid && is_finite(load(problem.scale, b, m, d));
  }
  return valid;
}

// Whether a query that is not valid has no NaN: its energies are infinite.
template <typename T>
__device__ bool is_out_of_reach(const Problem<T>& problem, int64_t b, int64_t m) {
  bool out = load(problem.beta, b, m) >= T(0);
  for (int64_t d = 0; d < problem.D; ++d) {
    const T y = load(problem.y, b, m, d);
    const T s = problem.scale.data ? load(problem.scale, b, m, d) : T(1);
    out = out && y == y && s == s;
  }
  return out;
}

// The regime of a query in the second pass, from the state that the first one stored; with
// `in_third`, in the third pass, from the state of the second.
template <typename T>
__device__ Regime later_regime(const RowTask<T>& task, int64_t b, int64_t m,
                               bool in_third = false) {
  const Problem<T>& problem = task.problem;
  const double beta = double(load(problem.beta, b, m));
  if (!is_valid(problem, b, m)) return Regime::kInvalid;
  if (is_cold<T>(beta)) return Regime::kCold;
  const double* state = task.out.state + kStateSize * (b * problem.M + m);
  const bool has_good_shift = problem.log_weight.data || state[kStateLogNormaliser] < kHotBelow;
  // At beta = 0 an infinite energy makes L NaN in the first pass, as 0 times infinity.
  const bool hot = in_third    ? state[kStateLogNormaliser] > kStillHotAbove &&
                                     state[kStateLogNormaliser] < kHotBelow
                   : beta == 0 ? true
                               : state[kStateLogNormaliser] > kHotAbove && has_good_shift;
  const bool may_be_hot = beta == 0 || task.normaliser_bound[b * problem.M + m] > kHotAbove;
  return hot && may_be_hot && is_finite(state[kStateShift]) ? Regime::kHot : Regime::kWarm;
}

// Z of a query in the third pass, the larger of beta and 1 / F: times Z, energies are numbers of
// ordinary size, whose squares stay within the range of T.
template <typename T>
__device__ T unit_of(const RowTask<T>& task, int64_t b, int64_t m) {
  const double beta = double(load(task.problem.beta, b, m));
  const double* state = task.out.state + kStateSize * (b * task.problem.M + m);
  const double z = fmax(beta, 1 / (fabs(state[kStateShift]) + fabs(state[kStateGap])));
  return z > 0 && z <= double(Range<T>::kLargest) ? T(z) : beta > 0 ? T(beta) : T(1);
}

// A latent's term of K in the third pass: w (Z (E - F))^2 Phi(-beta (E - F)).
// e = E - m, gap = F - m; `ratio` is Z / beta.
template <typename T>
__device__ T curvature_term(T beta, T unit, T ratio, T e, T gap, T w) {
  const T above = e - gap, tau = -beta * above, a = unit * above;
  if (tau >= T(-0.5) && tau <= T(0.5)) return w * a * a * phi_near(tau);
  if (!(e < infinity(T()))) return w * ratio * ratio;
  return w * fused(exponential(tau), tau - T(1), T(1)) * ratio * ratio;
}

}  // namespace lebm::cuda
