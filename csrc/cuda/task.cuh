// What a launch of the row pass is given, and what every kernel of it shares.
//
//   y, scale [B, M, D]; decoded [B, N, D]; beta [B, M]; log_weight, latent_energy [B, N]
//   partial: for each split of the latents and each query, its sums (partial.cuh)
#pragma once

#include "../problem.h"
#include "arithmetic.cuh"
#include "sharing.cuh"

namespace lebm::cuda {

// What is computed beside F: nothing; dF/dy; dF/dy and dF/dscale; these and dF/dbeta; all that can
// be wanted.
enum Wants { kValue, kSlopeY, kSlopeYScale, kSlopes, kEverything };

// Whether sum p (E - m) is, for dF/dbeta.
template <int kWants>
constexpr bool kWantsEnergy = kWants >= kSlopes;

// A log-normaliser above this (exponents about the reference are small) takes a second look: F is
// then too close to the reference for log sum exp to tell their difference.
constexpr double kHot = -0.5;

// Between these dF/dbeta is summed once more, as the difference of <E> and F is smaller still.
// Beyond the second, the reference was far from the least energy, and only looked hot; where the
// reference is the nearest of the sample, and not the heaviest, that is known after the first look.
constexpr double kWarmest = -0.6, kTepid = 0.7;

// Latents, or queries, of a thread that are summed before the sum is added to a larger one.
constexpr int kChunk = 32;

// Latents, scattered over the grid, among which the first reference is looked for.
constexpr int kSample = 64;

// How queries and latents are shared out; nothing here depends on what is wanted, or F would.
struct RowPlan {
  int query_threads;      // of a block's kThreads; the others take other latents
  int queries_a_thread;   // where many fit the registers
  int64_t splits;         // blocks that share a query's latents
  int64_t split_latents;  // of each but the last
};

template <typename T>
struct RowTask {
  Problem<T> problem;
  RowOutputs<T> out;
  RowPlan plan;
  const double* normaliser;  // [B, 2]: the largest log-weight; log sum exp beyond it. May be null.
  double* ceiling;           // [B, M]: not below L about the least energy, from the first look
  double* partial;           // [fields, splits, B M]
  double* vectors;           // D > 4: [splits, B M, 3, D]
};

template <typename T>
__device__ __forceinline__ T load(const View<T>& x, int64_t b, int64_t i) {
  return x.data[b * x.stride[0] + i * x.stride[1]];
}

template <typename T>
__device__ __forceinline__ T load(const View<T>& x, int64_t b, int64_t i, int64_t d) {
  return x.data[b * x.stride[0] + i * x.stride[1] + d * x.stride[2]];
}

// log2 of a latent's weight, normalised; without weights 0, and log2 N is taken from the sums.
template <typename T>
__device__ __forceinline__ T log2_weight(const Problem<T>& problem, const double* normaliser,
                                         int64_t b, int64_t n) {
  if (!problem.log_weight.data) return T(0);
  const double l = double(load(problem.log_weight, b, n));
  return T((l - normaliser[2 * b] - normaliser[2 * b + 1]) * kLog2E);
}

// beta log2(e) as the first look has it: 0 for queries of which it finds nothing.
template <typename T>
__device__ double rate_at(const Problem<T>& problem, int64_t b, int64_t m) {
  const double beta = double(load(problem.beta, b, m));
  return beta >= 0 && !is_cold<T>(beta) ? double(T(beta * kLog2E)) : 0.0;
}

// How a query is treated.
enum class Mode { kWarm, kHot, kCold, kInvalid };

// Whether a query has a temperature and is a point.
template <typename T>
__device__ bool is_valid(const Problem<T>& problem, int64_t b, int64_t m) {
  bool valid = load(problem.beta, b, m) >= T(0);
  for (int64_t d = 0; d < problem.D; ++d) {
    valid = valid && is_finite(load(problem.y, b, m, d));
    if (problem.scale.data) valid = valid && is_finite(load(problem.scale, b, m, d));
  }
  return valid;
}

// Whether a query that is not valid is so far away that its energies are infinite.
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

// What a query's second look is, by its temperature and by what the first one left; or what the
// look at its dF/dbeta is, by the state that the second left.
template <typename T>
__device__ Mode second_mode(const RowTask<T>& task, int64_t b, int64_t m, bool relative = false) {
  const Problem<T>& problem = task.problem;
  const double beta = double(load(problem.beta, b, m));
  if (!is_valid(problem, b, m)) return Mode::kInvalid;
  if (is_cold<T>(beta)) return Mode::kCold;
  const double* s = task.out.state + 3 * (b * problem.M + m);
  const bool looks_hot = problem.log_weight.data || s[1] < kTepid;
  // At beta = 0, 0 times an infinite energy has left the first look without a number.
  const bool hot = relative    ? s[1] > kWarmest && s[1] < kTepid
                   : beta == 0 ? true
                               : s[1] > kHot && looks_hot;
  const bool may_be = beta == 0 || task.ceiling[b * problem.M + m] > kHot;
  return hot && may_be && is_finite(s[0]) ? Mode::kHot : Mode::kWarm;
}

}  // namespace lebm::cuda
