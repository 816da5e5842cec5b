// From a query's sums over all latents to F, the state and what is wanted beside them.
#pragma once

#include "partial.cuh"

namespace lebm::cuda {

// The sums of a query: `vectors` are of p (y - s g), of p g (y - s g) and of p g, `step` apart.
// What a kernel has not computed is null.
struct Totals {
  double m, a, sum, energy, largest_chunk;
  const double *residual, *stretch, *mean;
};

// log2 of what the sums of weights that are all 1 are to be divided by.
template <typename T>
__device__ double log2_latents(const Problem<T>& problem) {
  return problem.log_weight.data ? 0.0 : log2(double(problem.N));
}

// L of sums S about the addend a.
template <typename T>
__device__ double log_normaliser(const Problem<T>& problem, double sum, double a) {
  return kLn2 * (log2(sum) - a - log2_latents(problem));
}

template <typename T>
__device__ void store_state(const RowOutputs<T>& out, int64_t query, double m, double L,
                            double gap) {
  out.state[3 * query] = m;
  out.state[3 * query + 1] = L;
  out.state[3 * query + 2] = gap;
  out.free_energy[query] = T(m + gap);
}

// Writes one dimension of the slopes and of the mean. `sum` is NaN where there are none.
template <typename T>
__device__ __forceinline__ void store_vectors(const RowOutputs<T>& out, int64_t at, double sum,
                                              double residual, double stretch, double mean) {
  if (out.slope_y) out.slope_y[at] = T(2 * residual / sum);
  if (out.slope_scale) out.slope_scale[at] = T(-2 * stretch / sum);
  if (out.mean) out.mean[at] = T(mean / sum);
}

// The first look. Returns what the vectors are to be divided by.
template <typename T>
__device__ double finish_warm(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t) {
  const Problem<T>& problem = task.problem;
  const int64_t query = b * problem.M + m;
  const double beta = double(load(problem.beta, b, m)), nan = not_a_number();
  const bool valid = is_valid(problem, b, m);
  // The sums of a query that is not valid are no number where a latent is none.
  if (!valid && !(t.sum == t.sum && is_out_of_reach(problem, b, m))) {
    store_state(task.out, query, nan, nan, nan);
    if (task.out.slope_beta) task.out.slope_beta[query] = T(nan);
    return nan;
  }
  if (!valid || t.sum == 0) {  // no energy is finite
    store_state(task.out, query, double(INFINITY), 0.0, 0.0);
    if (task.out.slope_beta) task.out.slope_beta[query] = T(nan);
    return nan;
  }
  const double L = log_normaliser(problem, t.sum, t.a);
  // No chunk's mean is above what the least energy has, so much is the reference above it at
  // least. A chunk's weights sum to 1 at most.
  const double most = problem.log_weight.data ? 1.0 : double(kChunk);
  const double above = kLn2 * (log2(t.largest_chunk / most) - t.a);
  task.ceiling[query] = above > 0 ? L - above : L;
  // At beta = 0 the second look finds the gap.
  store_state(task.out, query, t.m, L, -L / beta);
  if (task.out.slope_beta) {
    // -KL / beta^2 with KL = -beta <E - m> - L.
    const double excess = t.energy / t.sum;
    task.out.slope_beta[query] = T((excess + L / beta) / beta);
  }
  return t.sum;
}

// The second look at a query near its reference, of energies e = E - m - a: t.sum is that of w,
// t.energy of w e, minus of w (exp(-beta e) - 1), and largest the largest |e|: a latent that no
// sample met may lie far below the reference.
template <typename T>
__device__ void finish_hot(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t,
                           double minus, double largest) {
  const double beta = double(load(task.problem.beta, b, m));
  const double L = log1p(minus / t.sum);
  // Otherwise the first look was better.
  if (beta != 0 && !(L > kWarmest && L < kTepid)) return;
  // Below rounding, the second-order term -beta Var/2 cannot be seen, and exponents may underflow.
  const bool flat = beta == 0 || beta * largest <= double(Range<T>::kEps) / 4;
  const double gap = flat ? t.energy / t.sum : -L / beta;
  store_state(task.out, b * task.problem.M + m, t.m, L - beta * t.a, gap + t.a);
}

// The second look at beta = inf: the sums are over the latents of least energy.
template <typename T>
__device__ double finish_cold(const RowTask<T>& task, int64_t b, int64_t m, const Totals& t) {
  const int64_t query = b * task.problem.M + m;
  if (task.out.slope_beta) task.out.slope_beta[query] = T(0);
  if (t.sum == 0) {
    store_state(task.out, query, double(INFINITY), 0.0, 0.0);
    return not_a_number();
  }
  const double L = log_normaliser(task.problem, t.sum, t.a);
  // a is whole: the rest of the normaliser would be lost beside it.
  const bool is_number = t.sum == t.sum && t.m > -double(INFINITY);
  store_state(task.out, query, is_number ? t.m : not_a_number(), L, 0.0);
  task.out.state[3 * query + 2] = log2(t.sum);
  return t.sum;
}

// All of a query's results at D <= 4, from the fields of partial.cuh.
template <typename T, int kD, int kWants>
__device__ Totals totals_of(const double (&fields)[kFields<kD, kWants>]) {
  const double* sums = fields + (kWantsEnergy<kWants> ? 4 : 3);
  return {fields[0],
          fields[1],
          fields[2],
          kWantsEnergy<kWants> ? fields[3] : 0.0,
          fields[kLargestChunk<kD, kWants>],
          kWants >= kSlopeY ? sums : nullptr,
          kWants >= kSlopeYScale ? sums + kD : nullptr,
          kWants == kEverything ? sums + 2 * kD : nullptr};
}

template <typename T, int kD, int kWants>
__device__ __forceinline__ void finish_vectors(const RowTask<T>& task, int64_t query, double sum,
                                               const Totals& t) {
  if constexpr (kWants != kValue) {
    for (int d = 0; d < kD; ++d) {
      store_vectors(task.out, query * kD + d, sum, t.residual[d],
                    kWants >= kSlopeYScale ? t.stretch[d] : 0.0,
                    kWants == kEverything ? t.mean[d] : 0.0);
    }
  }
}

template <typename T, int kD, int kWants>
__device__ __forceinline__ void finish_narrow(const RowTask<T>& task, int64_t b, int64_t m,
                                              const double (&fields)[kFields<kD, kWants>]) {
  const int64_t query = b * task.problem.M + m;
  const Totals t = totals_of<T, kD, kWants>(fields);
  finish_vectors<T, kD, kWants>(task, query, finish_warm(task, b, m, t), t);
  if (kWants == kEverything && task.out.index) {
    task.out.index[query] = int64_t(fields[kFields<kD, kWants> - 1]);
  }
}

// After a second look: fields as of kEverything, where a hot query has `minus` for the first of its
// vectors, and - largest for the least energy.
template <typename T, int kD>
__device__ __forceinline__ void finish_second(const RowTask<T>& task, int64_t b, int64_t m,
                                              Mode mode,
                                              const double (&fields)[kFields<kD, kEverything>]) {
  const Totals t = totals_of<T, kD, kEverything>(fields);
  if (mode == Mode::kHot) {
    finish_hot(task, b, m, t, t.residual[0], -fields[kFields<kD, kEverything> - 2]);
  } else if (mode == Mode::kCold) {
    finish_vectors<T, kD, kEverything>(task, b * task.problem.M + m, finish_cold(task, b, m, t), t);
  }
}

// The same for one more look at hot queries, of sum w and sum w (E - F)^2 Phi.
template <typename T>
__device__ void finish_relative(const RowTask<T>& task, int64_t b, int64_t m, double weight,
                                double relative) {
  task.out.slope_beta[b * task.problem.M + m] = T(-relative / weight);
}

}  // namespace lebm::cuda
