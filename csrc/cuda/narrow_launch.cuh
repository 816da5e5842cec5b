// Launches of the row pass at D <= 4: which of the compiled kernels, on how many blocks.
#pragma once

#include "merge_rows.cuh"
#include "narrow_rows.cuh"
#include "narrow_second.cuh"

namespace lebm::cuda {

// Enough blocks for every multiprocessor, by splitting the latents if the queries are few.
template <typename T>
RowPlan plan_rows(const Problem<T>& p, int multiprocessors) {
  RowPlan plan;
  plan.queries_a_thread = p.M >= kMany ? 4 : 1;
  plan.query_threads = threads_for(p.M, plan.queries_a_thread);
  const int64_t blocks = p.B * divide_up(p.M, int64_t(plan.query_threads) * plan.queries_a_thread);
  // A split should be worth the sample and the sums that every one of its threads begins with.
  const int64_t least = max(int64_t(1024), int64_t(16) * (kThreads / plan.query_threads));
  const int64_t splits = splits_for(blocks, p.N, least, 2 * kSample, multiprocessors);
  plan.split_latents = divide_up(divide_up(p.N, splits), kSample) * kSample;
  plan.splits = divide_up(p.N, plan.split_latents);
  return plan;
}

// The numbers of dimensions, up to kNarrow, whose kernels are compiled: all but for some tests.
template <int... kD>
struct Dimensions {};
using AllDimensions = Dimensions<1, 2, 3, 4>;

template <typename T>
Wants wants_of(const RowOutputs<T>& out) {
  return out.mean || out.index ? kEverything
         : out.slope_beta      ? kSlopes
         : out.slope_scale     ? kSlopeYScale
         : out.slope_y         ? kSlopeY
                               : kValue;
}

// Doubles of workspace for the partial sums.
template <typename T>
int64_t narrow_workspace(const Problem<T>& p, const RowPlan& plan) {
  return plan.splits > 1 ? (7 + 3 * p.D) * plan.splits * p.B * p.M : 0;
}

template <typename T, int kD, int kWants, Look kLook>
void launch_merge(const RowTask<T>& task, cudaStream_t stream) {
  if (task.plan.splits == 1) return;
  int split_threads = 1;
  while (split_threads < kThreads && split_threads * 4 < task.plan.splits) split_threads *= 2;
  const int64_t blocks = divide_up(task.problem.B * task.problem.M, kThreads / split_threads);
  LEBM_LAUNCH((merge_rows_kernel<T, kD, kWants, kLook>), unsigned(blocks), kThreads, 0, stream,
              task, split_threads);
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, int kQueries>
void launch_first(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const int64_t blocks = p.B * divide_up(p.M, int64_t(task.plan.query_threads) * kQueries);
  LEBM_LAUNCH((narrow_rows_kernel<T, kD, kHasScale, kHasExtras, kWants, kQueries>),
              dim3(unsigned(blocks), unsigned(task.plan.splits)), kThreads, 0, stream, task);
  launch_merge<T, kD, kWants, Look::kFirst>(task, stream);
}

template <typename T, int kD, bool kRelative>
void launch_second(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const int64_t blocks = p.B * divide_up(p.M, task.plan.query_threads);
  LEBM_LAUNCH((narrow_second_kernel<T, kD, kRelative>),
              dim3(unsigned(blocks), unsigned(task.plan.splits)), kThreads, 0, stream, task);
  launch_merge<T, kD, kEverything, kRelative ? Look::kRelative : Look::kSecond>(task, stream);
}

// What is compiled: in float, everything that makes a difference to the pair loop where many
// queries are; where there are few, and in double, arguments are taken as present. A kernel for
// more than is wanted gives the same F, but for scaled queries.
template <typename T, int kD, bool kHasExtras>
void launch_first(const RowTask<T>& task, cudaStream_t stream) {
  const Wants wants = wants_of(task.out);
  if constexpr (sizeof(T) == 4) {
    constexpr int kSome = kD <= 2 ? 4 : 2;
    const bool has_scale = task.problem.scale.data;
    if (task.plan.queries_a_thread > 1) {
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
  launch_second<T, kD, false>(task, stream);
  if (task.out.slope_beta) launch_second<T, kD, true>(task, stream);
}

}  // namespace lebm::cuda
