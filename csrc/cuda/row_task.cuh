// The arguments of a kernel launch of the row passes.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace lebm::cuda {

// What is computed beside F: nothing; dF/dy; dF/dy and dF/dscale; these and dF/dbeta; everything.
enum Wants { kValue, kSlopeY, kSlopeYScale, kSlopes, kEverything };

// Whether dF/dbeta or KL is wanted. Hot queries get a third pass for them.
template <typename T>
bool wants_curvature(const RowOutputs<T>& out) {
  return out.slope_beta || out.relative_entropy;
}

// Whether the sum of p (E - m) is computed, for <E>, KL and dF/dbeta.
template <int kWants>
constexpr bool kWantsEnergy = kWants >= kSlopes;

// The first shift of a query is the best of this many latents, scattered over the grid.
constexpr int kSample = 64;

// How queries and latents are divided (splits.cuh). No field depends on what is wanted, because F
// must not depend on it.
struct RowPlan {
  int query_threads;  // of the kThreads of a thread block; the other threads take other latents
  int queries_per_thread;  // more than 1 where many queries fit into the registers
  int64_t num_splits;      // of a query's latents, over thread blocks
  int64_t split_size;      // latents of each split but the last
};

template <typename T>
struct RowTask {
  Problem<T> problem;
  RowOutputs<T> out;
  RowPlan plan;
  const double* normaliser;  // [B, 2], see normalise.cuh; null without log-weights
  double* normaliser_bound;  // [B, M]: upper bound of L about the least energy (first row pass)
  double* partial;           // [fields, num_splits, B M]: the sums of each split, see partial.cuh
  double* vectors;           // [num_splits, B M, 3, D] at D > 4
};

}  // namespace lebm::cuda
