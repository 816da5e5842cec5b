// The row pass at every D: its workspace and its launches.
//
//   y, scale [B, M, D]; decoded [B, N, D] -> F [B, M], state [B, M, 4], slopes
#pragma once

#include <cstdint>

#include "../problem.h"
#include "device.cuh"
#include "dimensions.cuh"
#include "narrow_rows_launch.cuh"
#include "normalise.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"
#include "wide_rows.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

template <typename T>
RowPlan plan_wide_rows(const Problem<T>& p, int multiprocessors) {
  constexpr int64_t kTile = kTileOthers<T>, kResident = 4;
  const int64_t blocks = max(p.B * divide_up(p.M, kTileOwn), int64_t(1));
  // A split costs a tile more, for the sample.
  const int64_t num_splits =
      num_splits_for(blocks, p.N, 2 * kTile, kTile, multiprocessors, kResident);
  const int64_t split_size = divide_up(divide_up(p.N, num_splits), kTile) * kTile;
  return {kThreads, 1, divide_up(p.N, split_size), split_size};
}

template <typename T>
bool wants_vectors(const RowOutputs<T>& out) {
  return out.slope_y || out.slope_scale || out.mean;
}

// The number of doubles of workspace for launch_rows: the normaliser, its bounds, partial sums,
// vectors.
template <typename T>
int64_t rows_workspace(const Problem<T>& p, const RowOutputs<T>& out, int multiprocessors) {
  int64_t count = normaliser_workspace(p) + p.B * p.M;
  if (p.D <= kNarrow) {
    count += narrow_workspace(p, plan_narrow_rows(p, multiprocessors));
  } else {
    const RowPlan plan = plan_wide_rows(p, multiprocessors);
    count += plan.num_splits * p.B * p.M * (kWideFields + (wants_vectors(out) ? 3 * p.D : 0));
  }
  return count;
}

template <typename T>
void launch_wide_rows(const RowTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const dim3 grid(unsigned(p.B * divide_up(p.M, kTileOwn)), unsigned(task.plan.num_splits));
  const unsigned queries = unsigned(p.B * p.M);
  auto launch = [&](auto kernel, auto finish) {
    LEBM_LAUNCH(kernel, grid, kThreads, 0, stream, task);
    LEBM_LAUNCH(finish, queries, kThreads, 0, stream, task);
  };
  const bool has_scale = p.scale.data;
  auto finish = wide_finish_kernel<T, RowPass::kFirst>;
  switch (wants_of(task.out)) {
    case kValue:
      has_scale ? launch(wide_rows_kernel<T, RowPass::kFirst, true, kValue>, finish)
                : launch(wide_rows_kernel<T, RowPass::kFirst, false, kValue>, finish);
      break;
    case kSlopeY:
      has_scale ? launch(wide_rows_kernel<T, RowPass::kFirst, true, kSlopeY>, finish)
                : launch(wide_rows_kernel<T, RowPass::kFirst, false, kSlopeY>, finish);
      break;
    default:
      has_scale ? launch(wide_rows_kernel<T, RowPass::kFirst, true, kEverything>, finish)
                : launch(wide_rows_kernel<T, RowPass::kFirst, false, kEverything>, finish);
  }
  launch(wide_rows_kernel<T, RowPass::kSecond, true, kEverything>,
         wide_finish_kernel<T, RowPass::kSecond>);
  if (wants_curvature(task.out)) {
    launch(wide_rows_kernel<T, RowPass::kThird, true, kValue>,
           wide_finish_kernel<T, RowPass::kThird>);
  }
}

// `workspace` has rows_workspace doubles. M and N must not be 0.
template <typename T, int... kD>
void launch_rows(const Problem<T>& p, const RowOutputs<T>& out, double* workspace,
                 int multiprocessors, cudaStream_t stream, Dimensions<kD...>) {
  RowTask<T> task;
  task.problem = p;
  task.out = out;
  task.normaliser = launch_normalise(p, workspace, stream);
  task.normaliser_bound = workspace + normaliser_workspace(p);
  task.partial = task.normaliser_bound + p.B * p.M;
  task.vectors = nullptr;
  if (p.D > kNarrow) {
    task.plan = plan_wide_rows(p, multiprocessors);
    if (wants_vectors(out))
      task.vectors = task.partial + kWideFields * task.plan.num_splits * p.B * p.M;
    return launch_wide_rows(task, stream);
  }
  task.plan = plan_narrow_rows(p, multiprocessors);
  ((p.D == kD ? launch_narrow_rows<T, kD>(task, stream) : void()), ...);
}

}  // namespace lebm::cuda
