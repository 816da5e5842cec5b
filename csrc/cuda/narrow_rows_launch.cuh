// Launches of the row passes at D <= 4: the number of thread blocks, and the choice of the kernel.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "device.cuh"
#include "merge_rows.cuh"
#include "narrow_later_rows.cuh"
#include "narrow_rows.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

// Splits the latents if the queries alone give too few thread blocks for all multiprocessors.
template <typename T>
RowPlan plan_narrow_rows(const Problem<T>& p, int multiprocessors) {
  RowPlan plan;
  plan.queries_per_thread = p.M >= kMany ? 4 : 1;
  plan.query_threads = threads_for(p.M, plan.queries_per_thread);
  const int64_t blocks =
      p.B * divide_up(p.M, int64_t(plan.query_threads) * plan.queries_per_thread);
  // Each thread of a split begins with the sample and ends with a merge: a split must be worth
  // that.
  const int64_t smallest = max(int64_t(1024), int64_t(16) * (kThreads / plan.query_threads));
  const int64_t num_splits = num_splits_for(blocks, p.N, smallest, 2 * kSample, multiprocessors);
  plan.split_size = divide_up(divide_up(p.N, num_splits), kSample) * kSample;
  plan.num_splits = divide_up(p.N, plan.split_size);
  return plan;
}

template <typename T>
Wants wants_of(const RowOutputs<T>& out) {
  return out.mean || out.index || out.energy ? kEverything
         : wants_curvature(out)              ? kSlopes
         : out.slope_scale                   ? kSlopeYScale
         : out.slope_y                       ? kSlopeY
                                             : kValue;
}

// The number of doubles of workspace for the partial sums.
template <typename T>
int64_t narrow_workspace(const Problem<T>& p, const RowPlan& plan) {
  return plan.num_splits > 1 ? (7 + 3 * p.D) * plan.num_splits * p.B * p.M : 0;
}

template <typename T, int kD, int kWants, RowPass kPass>
void launch_merge(const RowTask<T>& task, cudaStream_t stream) {
  if (task.plan.num_splits == 1) return;
  int split_threads = 1;
  while (split_threads < kThreads && split_threads * 4 < task.plan.num_splits) split_threads *= 2;
  const int64_t blocks = divide_up(task.problem.B * task.problem.M, kThreads / split_threads);
  LEBM_LAUNCH((merge_rows_kernel<T, kD, kWants, kPass>), unsigned(blocks), kThreads, 0, stream,
              task, split_threads);
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, int kQueries>
void launch_first(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const int64_t blocks = p.B * divide_up(p.M, int64_t(task.plan.query_threads) * kQueries);
  LEBM_LAUNCH((narrow_rows_kernel<T, kD, kHasScale, kHasExtras, kWants, kQueries>),
              dim3(unsigned(blocks), unsigned(task.plan.num_splits)), kThreads, 0, stream, task);
  launch_merge<T, kD, kWants, RowPass::kFirst>(task, stream);
}

template <typename T, int kD, RowPass kPass>
void launch_later(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const int64_t blocks = p.B * divide_up(p.M, task.plan.query_threads);
  LEBM_LAUNCH((narrow_later_rows_kernel<T, kD, kPass>),
              dim3(unsigned(blocks), unsigned(task.plan.num_splits)), kThreads, 0, stream, task);
  launch_merge<T, kD, kEverything, kPass>(task, stream);
}

// The kernels that are compiled. In float with many queries there is one for each combination of
// arguments and outputs that changes the pair loop. With few queries, and in double, a kernel
// treats all arguments as present and may compute more than is wanted. F is the same in all of
// them, except for premultiplied queries.
template <typename T, int kD, bool kHasExtras>
void launch_first(const RowTask<T>& task, cudaStream_t stream) {
  const Wants wants = wants_of(task.out);
  if constexpr (sizeof(T) == 4) {
    constexpr int kSome = kD <= 2 ? 4 : 2;
    const bool has_scale = task.problem.scale.data;
    if (task.plan.queries_per_thread > 1) {
      switch (wants) {
        case kValue:
          return has_scale ? launch_first<T, kD, true, kHasExtras, kValue, 4>(task, stream)
                           : launch_first<T, kD, false, kHasExtras, kValue, 4>(task, stream);
        case kSlopeY:
          return has_scale ? launch_first<T, kD, true, kHasExtras, kSlopeY, kSome>(task, stream)
                           : launch_first<T, kD, false, kHasExtras, kSlopeY, kSome>(task, stream);
        case kSlopeYScale:
          return launch_first<T, kD, true, kHasExtras, kSlopeYScale, 2>(task, stream);
        case kSlopes:
          return launch_first<T, kD, true, kHasExtras, kSlopes, 2>(task, stream);
        default:;
      }
    }
  }
  if (wants >= kSlopes) {
    return launch_first<T, kD, true, kHasExtras, kEverything, 1>(task, stream);
  }
  wants == kValue ? launch_first<T, kD, true, kHasExtras, kValue, 1>(task, stream)
                  : launch_first<T, kD, true, kHasExtras, kSlopeYScale, 1>(task, stream);
}

template <typename T, int kD>
void launch_narrow_rows(const RowTask<T>& task, cudaStream_t stream) {
  if (sizeof(T) == 8 || task.problem.log_weight.data || task.problem.latent_energy.data) {
    launch_first<T, kD, true>(task, stream);
  } else if constexpr (sizeof(T) == 4) {
    launch_first<T, kD, false>(task, stream);
  }
  launch_later<T, kD, RowPass::kSecond>(task, stream);
  if (wants_curvature(task.out)) launch_later<T, kD, RowPass::kThird>(task, stream);
}

}  // namespace lebm::cuda
