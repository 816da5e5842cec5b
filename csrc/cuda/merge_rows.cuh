// Joins the partial sums of a query's splits, in their order, and finishes: D <= 4.
#pragma once

#include "finish.cuh"

namespace lebm::cuda {

// Which sweep's partial sums are joined.
enum class Look { kFirst, kSecond, kRelative };

// kThreads / split_threads queries a block; a query's threads take the splits in turn.
template <typename T, int kD, int kWants, Look kLook>
__global__ void __launch_bounds__(kThreads)
    merge_rows_kernel(const __grid_constant__ RowTask<T> task, int split_threads) {
  constexpr int kAll = kFields<kD, kWants>;
  LEBM_SHARED(double, scratch, [kAll * kThreads]);
  const Problem<T>& problem = task.problem;
  const int a_block = kThreads / split_threads;
  const int query_thread = int(threadIdx.x) % a_block, split_thread = int(threadIdx.x) / a_block;
  const int64_t query = int64_t(blockIdx.x) * a_block + query_thread;
  const bool inside = query < problem.B * problem.M;
  const int64_t b = inside ? query / problem.M : 0, m = inside ? query % problem.M : 0;
  Mode mode = Mode::kInvalid;
  if (inside) {
    mode = kLook == Look::kFirst ? Mode::kWarm : second_mode(task, b, m, kLook == Look::kRelative);
  }
  const bool looks = kLook == Look::kFirst    ? inside
                     : kLook == Look::kSecond ? mode == Mode::kHot || mode == Mode::kCold
                                              : mode == Mode::kHot;
  if (!__syncthreads_or(looks)) return;

  double fields[kAll];
  for (int i = 0; i < kAll; ++i) fields[i] = 0;
  if (kWants == kEverything) {
    fields[kAll - 2] = double(INFINITY);
    fields[kAll - 1] = double(problem.N);
  }
  // Of hot queries all partial sums have one reference, whatever c.
  const double c = kLook == Look::kFirst && looks && !is_cold<T>(double(load(problem.beta, b, m)))
                       ? rate_at(problem, b, m)
                       : double(INFINITY);
  for (int64_t split = split_thread; split < task.plan.splits && looks; split += split_threads) {
    double other[kAll];
    load_partial(task, split, query, other);
    if (split == split_thread) {
      for (int i = 0; i < kAll; ++i) fields[i] = other[i];
    } else {
      merge<kD, kWants>(c, fields, other);
    }
  }
  merge_threads<kD, kWants>(c, a_block, split_threads, scratch, fields);
  if (split_thread != 0 || !looks) return;
  if constexpr (kLook == Look::kFirst) {
    finish_narrow<T, kD, kWants>(task, b, m, fields);
  } else if constexpr (kLook == Look::kSecond) {
    finish_second<T, kD>(task, b, m, mode, fields);
  } else {
    finish_relative(task, b, m, fields[2], fields[3]);
  }
}

}  // namespace lebm::cuda
