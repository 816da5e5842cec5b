// From the sums of a query over all latents (partial.cuh) to F, the state and the slopes:
//
//   L         = ln 2 (log2 S - a) - log sum_n w
//   F         = m - L / beta
//   dF/dy     = 2 sum p~ (y - s g) / S
//   dF/dscale = -2 sum p~ g (y - s g) / S
//   mean      = sum p~ g / S
//   <E>       = m + sum p~ (E - m) / S
//   KL(p|w)   = -beta <E - m> - L
//   dF/dbeta  = -KL / beta^2
//
// Outputs: F, dF/dbeta, <E>, KL [B, M]; state [B, M, 4] = (m, L, F - m, rest); the others
// [B, M, D].
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "load.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

// The sums of a query about the shift (m, a): the mass S; `energy`, of p~ (E - m); and for each
// dimension those of p~ (y - s g), p~ g (y - s g) and p~ g, null if the kernel does not compute
// them. `least` is the least energy, and -inf if the kernel does not find it.
struct Totals {
  double m, a, mass, energy, largest_chunk, least;
  const double *residual, *stretch, *mean;
};

// L of a mass about the shift (m, a).
template <typename T>
__device__ double log_normaliser(const Problem<T>& problem, double mass, double a) {
  return kLn2 * (log2(mass) - a - log2_total_weight(problem));
}

template <typename T>
__device__ void store_state(const RowOutputs<T>& out, int64_t query, double m, double L,
                            double gap) {
  double* const state = out.state + kStateSize * query;
  state[kStateShift] = m;
  state[kStateLogNormaliser] = L;
  state[kStateGap] = gap;
  state[kStateRest] = 0;
  out.free_energy[query] = T(m + gap);
}

// Writes one dimension of the slopes and of the mean; `at` is its place in [B, M, D]. A NaN `mass`
// makes them NaN.
template <typename T>
__device__ __forceinline__ void store_vectors(const RowOutputs<T>& out, int64_t at, double mass,
                                              double residual, double stretch, double mean) {
  if (out.slope_y) out.slope_y[at] = T(2 * residual / mass);
  if (out.slope_scale) out.slope_scale[at] = T(-2 * stretch / mass);
  if (out.mean) out.mean[at] = T(mean / mass);
}

// Writes <E> and, from KL, dF/dbeta. At beta = 0 it is the third pass that computes the slope.
template <typename T>
__device__ void store_energy(const RowOutputs<T>& out, int64_t query, double beta, double energy,
                             double entropy) {
  if (out.energy) out.energy[query] = T(energy);
  if (out.relative_entropy) out.relative_entropy[query] = T(entropy);
  if (out.slope_beta) out.slope_beta[query] = -(entropy / beta) / beta;
}

// Finishes the first pass. Returns the divisor of the vectors.
template <typename T>
__device__ double finish_first(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t) {
  const Problem<T>& problem = task.problem;
  const int64_t query = b * problem.M + m;
  const double beta = double(load(problem.beta, b, m)), nan = not_a_number();
  const bool valid = is_valid(problem, b, m);
  // A NaN latent makes the mass NaN, whether or not the query is valid.
  if (!valid && !(t.mass == t.mass && is_out_of_reach(problem, b, m))) {
    store_state(task.out, query, nan, nan, nan);
    store_energy(task.out, query, beta, nan, nan);
    return nan;
  }
  if (!valid || t.mass == 0) {  // no energy is finite
    store_state(task.out, query, double(INFINITY), 0.0, 0.0);
    store_energy(task.out, query, beta, nan, nan);
    return nan;
  }
  const double L = log_normaliser(problem, t.mass, t.a);
  // A poor shift m, far above the least energy, makes L large, and the query seems hot. The mean of
  // a chunk's exponentials is at most the exponential of the least energy, so that its logarithm is
  // a lower bound of beta (m - least energy). A chunk's weights sum to at most 1 (or kChunk).
  const double chunk_weight = problem.log_weight.data ? 1.0 : double(kChunk);
  const double above = kLn2 * (log2(t.largest_chunk / chunk_weight) - t.a);
  task.normaliser_bound[query] = above > 0 ? L - above : L;
  // At beta = 0 the second pass computes the gap.
  store_state(task.out, query, t.m, L, -L / beta);
  // The least energy of all, where it is known: m is the least of a sample.
  const double excess = t.energy / t.mass, entropy = -beta * excess - L;
  const double energy = excess < t.least - t.m ? t.least : t.m + excess;
  store_energy(task.out, query, beta, energy, beta > 0 && entropy < 0 ? 0.0 : entropy);
  return t.mass;
}

// Finishes the second pass of a hot query, with energies e = E - m - a. t.mass is the sum of w,
// t.energy of w e, mass_minus_1 of w (exp(-beta e) - 1). `largest` is the largest |e|: a latent
// outside the sample may lie far below the shift.
template <typename T>
__device__ void finish_hot(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t,
                           double mass_minus_1, double largest) {
  const double beta = double(load(task.problem.beta, b, m));
  const double L = log1p(mass_minus_1 / t.mass);
  // Outside of this range the first pass is more exact.
  if (beta != 0 && !(L > kStillHotAbove && L < kHotBelow)) return;
  // If flat, F = <E>: the second-order term -beta Var / 2 is below rounding, and exponents may
  // underflow.
  const bool flat = beta == 0 || beta * largest <= double(Range<T>::kEps) / 4;
  const double gap = flat ? t.energy / t.mass : -L / beta;
  const int64_t query = b * task.problem.M + m;
  store_state(task.out, query, t.m, L - beta * t.a, gap + t.a);
  // At beta = 0 the first pass has exponents of 0 times infinity.
  if (beta == 0 && task.out.energy) task.out.energy[query] = T(t.m + (gap + t.a));
}

// Finishes the second pass of a cold query, whose sums are over the latents of least energy.
// Returns the divisor of the vectors.
template <typename T>
__device__ double finish_cold(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t) {
  const int64_t query = b * task.problem.M + m;
  if (t.mass == 0) {
    store_state(task.out, query, double(INFINITY), 0.0, 0.0);
    store_energy(task.out, query, double(INFINITY), not_a_number(), not_a_number());
    return not_a_number();
  }
  const double L = log_normaliser(task.problem, t.mass, t.a);
  // L + a may lose the fractional part of the normaliser to rounding; a is whole, so that log2 of
  // the mass keeps it.
  const bool is_number = t.mass == t.mass && t.m > -double(INFINITY);
  store_state(task.out, query, is_number ? t.m : not_a_number(), L, 0.0);
  task.out.state[kStateSize * query + kStateRest] = log2(t.mass);
  const double least = is_number ? t.m : not_a_number();
  store_energy(task.out, query, double(INFINITY), least, is_number ? -L : least);
  return t.mass;
}

// The totals of a query at D <= 4, from the fields of partial.cuh.
template <typename T, int kD, int kWants>
__device__ Totals totals_of(const double (&fields)[kFields<kD, kWants>]) {
  const double* sums = fields + (kWantsEnergy<kWants> ? 4 : 3);
  return {fields[0],
          fields[1],
          fields[2],
          kWantsEnergy<kWants> ? fields[3] : 0.0,
          fields[kLargestChunk<kD, kWants>],
          kWants == kEverything ? fields[kFields<kD, kWants> - 2] : -double(INFINITY),
          kWants >= kSlopeY ? sums : nullptr,
          kWants >= kSlopeYScale ? sums + kD : nullptr,
          kWants == kEverything ? sums + 2 * kD : nullptr};
}

template <typename T, int kD, int kWants>
__device__ __forceinline__ void finish_vectors(const RowTask<T>& task, int64_t query, double mass,
                                               const Totals& t) {
  if constexpr (kWants != kValue) {
    for (int d = 0; d < kD; ++d) {
      store_vectors(task.out, query * kD + d, mass, t.residual[d],
                    kWants >= kSlopeYScale ? t.stretch[d] : 0.0,
                    kWants == kEverything ? t.mean[d] : 0.0);
    }
  }
}

template <typename T, int kD, int kWants>
__device__ __forceinline__ void finish_narrow_first(const RowTask<T>& task, int64_t b, int64_t m,
                                                    const double (&fields)[kFields<kD, kWants>]) {
  const int64_t query = b * task.problem.M + m;
  const Totals t = totals_of<T, kD, kWants>(fields);
  finish_vectors<T, kD, kWants>(task, query, finish_first(task, b, m, t), t);
  if (kWants == kEverything && task.out.index) {
    task.out.index[query] = int64_t(fields[kFields<kD, kWants> - 1]);
  }
}

// The fields are those of kEverything. A hot query has mass_minus_1 in the first field of its
// vectors, and -largest in the field of the least energy.
template <typename T, int kD>
__device__ __forceinline__ void finish_narrow_second(
    const RowTask<T>& task, int64_t b, int64_t m, Regime regime,
    const double (&fields)[kFields<kD, kEverything>]) {
  const Totals t = totals_of<T, kD, kEverything>(fields);
  if (regime == Regime::kHot) {
    finish_hot(task, b, m, t, t.residual[0], -fields[kFields<kD, kEverything> - 2]);
  } else if (regime == Regime::kCold) {
    finish_vectors<T, kD, kEverything>(task, b * task.problem.M + m, finish_cold(task, b, m, t), t);
  }
}

// Finishes the third pass: K = sum w (E - F)^2 Phi / sum w, of energies times Z; -K is dF/dbeta.
template <typename T>
__device__ void finish_third(const RowTask<T>& task, int64_t b, int64_t m, double weight,
                             double sum) {
  const int64_t query = b * task.problem.M + m;
  const double z = unit_of(task, b, m), curvature = sum / weight;
  const double rate = double(load(task.problem.beta, b, m)) / z;
  if (task.out.slope_beta) task.out.slope_beta[query] = -(curvature / z) / z;
  if (task.out.relative_entropy) task.out.relative_entropy[query] = T(rate * rate * curvature);
}

}  // namespace lebm::cuda
