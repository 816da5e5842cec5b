// Merges the splits of each query after a row pass at D <= 4, and finishes the query.
//
//   partial [fields, num_splits, B M]  ->  F, state and slopes [B, M, ...]
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "finish.cuh"
#include "load.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

// A thread block has kThreads / split_threads queries. The split_threads threads of a query take
// its splits in turn, so that the order of the sums is fixed.
template <typename T, int kD, int kWants, RowPass kPass>
__global__ void __launch_bounds__(kThreads)
    merge_rows_kernel(const __grid_constant__ RowTask<T> task, int split_threads) {
  constexpr int kAll = kFields<kD, kWants>;
  LEBM_SHARED(double, scratch, [kAll * kThreads]);
  const Problem<T>& problem = task.problem;
  const int queries_per_block = kThreads / split_threads;
  const int query_thread = int(threadIdx.x) % queries_per_block,
            split_thread = int(threadIdx.x) / queries_per_block;
  const int64_t query = int64_t(blockIdx.x) * queries_per_block + query_thread;
  const bool inside = query < problem.B * problem.M;
  const int64_t b = inside ? query / problem.M : 0, m = inside ? query % problem.M : 0;
  Regime regime = Regime::kInvalid;
  if (inside) {
    regime = kPass == RowPass::kFirst ? Regime::kWarm
                                      : later_regime(task, b, m, kPass == RowPass::kThird);
  }
  const bool active = kPass == RowPass::kFirst ? inside
                      : kPass == RowPass::kSecond
                          ? regime == Regime::kHot || regime == Regime::kCold
                          : regime == Regime::kHot;
  if (!__syncthreads_or(active)) return;

  double fields[kAll];
  for (int i = 0; i < kAll; ++i) fields[i] = 0;
  if (kWants == kEverything) {
    fields[kAll - 2] = double(INFINITY);
    fields[kAll - 1] = double(problem.N);
  }
  // All partial sums of a hot query are about one shift, for which any c gives the factor 1.
  const double c =
      kPass == RowPass::kFirst && active && !is_cold<T>(double(load(problem.beta, b, m)))
          ? rate_at(problem, b, m)
          : double(INFINITY);
  for (int64_t split = split_thread; split < task.plan.num_splits && active;
       split += split_threads) {
    double other[kAll];
    load_partial(task, split, query, other);
    if (split == split_thread) {
      for (int i = 0; i < kAll; ++i) fields[i] = other[i];
    } else {
      merge<kD, kWants>(c, fields, other);
    }
  }
  merge_threads<kD, kWants>(c, queries_per_block, split_threads, scratch, fields);
  if (split_thread != 0 || !active) return;
  if constexpr (kPass == RowPass::kFirst) {
    finish_narrow_first<T, kD, kWants>(task, b, m, fields);
  } else if constexpr (kPass == RowPass::kSecond) {
    finish_narrow_second<T, kD>(task, b, m, regime, fields);
  } else {
    finish_third(task, b, m, fields[2], fields[3]);
  }
}

}  // namespace lebm::cuda
