// The row pass: its workspace, and its launches by the number of dimensions.
#pragma once

#include "narrow_launch.cuh"
#include "normalise.cuh"
#include "wide_rows.cuh"

namespace lebm::cuda {

constexpr int kNarrow = 4;  // dimensions that a thread holds in registers

template <typename T>
RowPlan plan_wide_rows(const Problem<T>& p, int multiprocessors) {
  const int64_t blocks = max(p.B * divide_up(p.M, kTileQueries), int64_t(1));
  const int64_t wanted = divide_up(int64_t(2) * multiprocessors, blocks);
  const int64_t splits = max(int64_t(1), min(wanted, p.N / (4 * kTileLatents<T>)));
  const int64_t split_latents =
      divide_up(divide_up(p.N, splits), kTileLatents<T>) * kTileLatents<T>;
  return {kThreads, 1, divide_up(p.N, split_latents), split_latents};
}

template <typename T>
bool wants_vectors(const RowOutputs<T>& out) {
  return out.slope_y || out.slope_scale || out.mean;
}

// Doubles of workspace that launch_rows needs: the normaliser, ceilings, partial sums, vectors.
template <typename T>
int64_t rows_workspace(const Problem<T>& p, const RowOutputs<T>& out, int multiprocessors) {
  int64_t count = normaliser_workspace(p) + p.B * p.M;
  if (p.D <= kNarrow) {
    count += narrow_workspace(p, plan_rows(p, multiprocessors));
  } else {
    const RowPlan plan = plan_wide_rows(p, multiprocessors);
    count += plan.splits * p.B * p.M * (kWideFields + (wants_vectors(out) ? 3 * p.D : 0));
  }
  return count;
}

template <typename T>
void launch_wide_rows(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const dim3 grid(unsigned(p.B * divide_up(p.M, kTileQueries)), unsigned(task.plan.splits));
  const unsigned queries = unsigned(p.B * p.M);
  auto launch = [&](auto kernel, auto finish) {
    LEBM_LAUNCH(kernel, grid, kThreads, 0, stream, task);
    LEBM_LAUNCH(finish, queries, kThreads, 0, stream, task);
  };
  const bool scaled = p.scale.data;
  auto finish = wide_finish_kernel<T, Sweep::kFirst>;
  switch (wants_of(task.out)) {
    case kValue:
      scaled ? launch(wide_rows_kernel<T, Sweep::kFirst, true, kValue>, finish)
             : launch(wide_rows_kernel<T, Sweep::kFirst, false, kValue>, finish);
      break;
    case kSlopeY:
      scaled ? launch(wide_rows_kernel<T, Sweep::kFirst, true, kSlopeY>, finish)
             : launch(wide_rows_kernel<T, Sweep::kFirst, false, kSlopeY>, finish);
      break;
    default:
      scaled ? launch(wide_rows_kernel<T, Sweep::kFirst, true, kEverything>, finish)
             : launch(wide_rows_kernel<T, Sweep::kFirst, false, kEverything>, finish);
  }
  launch(wide_rows_kernel<T, Sweep::kSecond, true, kEverything>,
         wide_finish_kernel<T, Sweep::kSecond>);
  if (task.out.slope_beta) {
    launch(wide_rows_kernel<T, Sweep::kRelative, true, kValue>,
           wide_finish_kernel<T, Sweep::kRelative>);
  }
}

// `workspace` has rows_workspace doubles; M and N are not 0.
template <typename T, int... kD>
void launch_rows(const Problem<T>& p, const RowOutputs<T>& out, double* workspace,
                 int multiprocessors, cudaStream_t stream, Dimensions<kD...>) {
  RowTask<T> task;
  task.problem = p;
  task.out = out;
  task.normaliser = launch_normalise(p, workspace, stream);
  task.ceiling = workspace + normaliser_workspace(p);
  task.partial = task.ceiling + p.B * p.M;
  task.vectors = nullptr;
  if (p.D > kNarrow) {
    task.plan = plan_wide_rows(p, multiprocessors);
    if (wants_vectors(out))
      task.vectors = task.partial + kWideFields * task.plan.splits * p.B * p.M;
    return launch_wide_rows(task, stream);
  }
  task.plan = plan_rows(p, multiprocessors);
  ((p.D == kD ? launch_narrow_rows<T, kD>(task, stream) : void()), ...);
}

}  // namespace lebm::cuda
