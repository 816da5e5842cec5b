// The column pass at every D: its workspace and its launches.
//
//   grad [B, M]; state [B, M, 4] -> grad_decoded [B, N, D]; grad_log_weight, grad_latent_energy [B,
//   N]
#pragma once

#include <cstdint>

#include "../problem.h"
#include "column_task.cuh"
#include "device.cuh"
#include "dimensions.cuh"
#include "narrow_columns.cuh"
#include "normalise.cuh"
#include "splits.cuh"
#include "wide_columns.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

// The number of latents of a thread if there are many: as many as fit into its registers.
constexpr int several_latents(int64_t D, bool has_extras) { return D <= 2 && !has_extras ? 8 : 4; }

// How latents and queries are divided, and the width of the records: a task without its pointers.
template <typename T>
ColumnTask<T> plan_columns(const Problem<T>& p, const ColumnArguments<T>& arguments,
                           int multiprocessors) {
  ColumnTask<T> task;
  task.problem = p;
  task.arguments = arguments;
  const bool extended = arguments.grad_log_weight;
  if (p.D > kNarrow) {
    task.width = extended ? kExtended : kBasic;
    task.fields = p.D + 2;
    constexpr int64_t kTile = kTileOthers<T>, kResident = 4;
    const int64_t blocks = max(p.B * divide_up(p.N, kTileOwn), int64_t(1));
    const int64_t num_splits =
        num_splits_for(blocks, p.M, kTile, kTile / 4, multiprocessors, kResident);
    task.split_size = divide_up(divide_up(p.M, num_splits), kTile) * kTile;
  } else {
    const bool general = sizeof(T) == 8 || extended;
    const bool has_scale = general || p.scale.data;
    const bool has_extras = general || p.log_weight.data || p.latent_energy.data;
    task.width = ((general ? kExtended : kBasic) + (has_scale ? 2 : 1) * p.D + 3) / 4 * 4;
    task.fields = p.D + (has_extras ? 1 : 0) + (general ? 1 : 0);
    task.latents_per_thread = p.N < kMany || general ? 1 : several_latents(p.D, has_extras);
    task.latent_threads = threads_for(p.N, task.latents_per_thread);
    const int64_t blocks = max(
        p.B * divide_up(p.N, int64_t(task.latent_threads) * task.latents_per_thread), int64_t(1));
    const int64_t smallest = max(int64_t(1024), int64_t(8) * (kThreads / task.latent_threads));
    const int64_t num_splits = num_splits_for(blocks, p.M, smallest, 64, multiprocessors);
    task.split_size = divide_up(divide_up(p.M, num_splits), kQueryTile) * kQueryTile;
  }
  task.num_splits = divide_up(p.M, task.split_size);
  return task;
}

// The numbers of doubles of workspace for the records and for the partial sums.
template <typename T>
int64_t record_workspace(const ColumnTask<T>& task) {
  // A multiple of 16 bytes: the loads of the records need that alignment.
  return divide_up(task.problem.B * task.problem.M * task.width * int64_t(sizeof(T)), 16) * 2;
}

template <typename T>
int64_t partial_workspace(const ColumnTask<T>& task) {
  const bool direct = task.problem.D <= kNarrow && task.num_splits == 1;
  return direct ? 0 : task.num_splits * task.problem.B * task.problem.N * task.fields;
}

template <typename T>
int64_t columns_workspace(const Problem<T>& p, const ColumnArguments<T>& arguments,
                          int multiprocessors) {
  const ColumnTask<T> task = plan_columns(p, arguments, multiprocessors);
  return normaliser_workspace(p) + record_workspace(task) + partial_workspace(task);
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, bool kHasWeightGrad, int kLatents>
void launch_columns_kernel(const ColumnTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const int64_t blocks = p.B * divide_up(p.N, int64_t(task.latent_threads) * kLatents);
  LEBM_LAUNCH((narrow_columns_kernel<T, kD, kHasScale, kHasExtras, kHasWeightGrad, kLatents>),
              dim3(unsigned(blocks), unsigned(task.num_splits)), kThreads, 0, stream, task);
}

template <typename T, int kD, bool kHasScale, bool kHasExtras>
void launch_columns_kernel(const ColumnTask<T>& task, cudaStream_t stream) {
  task.latents_per_thread > 1
      ? launch_columns_kernel<T, kD, kHasScale, kHasExtras, false, several_latents(kD, kHasExtras)>(
            task, stream)
      : launch_columns_kernel<T, kD, kHasScale, kHasExtras, false, 1>(task, stream);
}

// The kernels that are compiled: as for the rows.
template <typename T, int kD>
void launch_narrow_columns(const ColumnTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  if (sizeof(T) == 8 || task.arguments.grad_log_weight) {
    return launch_columns_kernel<T, kD, true, true, true, 1>(task, stream);
  }
  if constexpr (sizeof(T) == 4) {
    if (p.log_weight.data || p.latent_energy.data) {
      p.scale.data ? launch_columns_kernel<T, kD, true, true>(task, stream)
                   : launch_columns_kernel<T, kD, false, true>(task, stream);
    } else {
      p.scale.data ? launch_columns_kernel<T, kD, true, false>(task, stream)
                   : launch_columns_kernel<T, kD, false, false>(task, stream);
    }
  }
}

template <typename T>
void launch_wide_columns(const ColumnTask<T>& task, cudaStream_t stream) {
  const Problem<T>& p = task.problem;
  const dim3 grid(unsigned(p.B * divide_up(p.N, kTileOwn)), unsigned(task.num_splits));
  auto kernel = p.scale.data ? wide_columns_kernel<T, true> : wide_columns_kernel<T, false>;
  LEBM_LAUNCH(kernel, grid, kThreads, 0, stream, task);
}

// `workspace` has columns_workspace doubles, at a multiple of 16 bytes. M and N must not be 0.
template <typename T, int... kD>
void launch_columns(const Problem<T>& p, const ColumnArguments<T>& arguments, double* workspace,
                    int multiprocessors, cudaStream_t stream, Dimensions<kD...>) {
  ColumnTask<T> task = plan_columns(p, arguments, multiprocessors);
  task.normaliser = launch_normalise(p, workspace, stream);
  T* const records = reinterpret_cast<T*>(workspace + normaliser_workspace(p));
  task.records = records;
  task.partial = workspace + normaliser_workspace(p) + record_workspace(task);
  const bool narrow = p.D <= kNarrow;
  const bool general = narrow && sizeof(T) == 8;
  const bool extended = general || arguments.grad_log_weight;
  LEBM_LAUNCH(prepare_kernel<T>, unsigned(divide_up(p.B * p.M, kThreads)), kThreads, 0, stream, p,
              arguments.grad, arguments.state, extended ? int(kExtended) : int(kBasic), narrow,
              extended || p.scale.data, task.width, records);
  if (!narrow) launch_wide_columns(task, stream);
  ((p.D == kD ? launch_narrow_columns<T, kD>(task, stream) : void()), ...);
  if (partial_workspace(task) > 0) {
    const int64_t blocks = divide_up(p.B * p.N * task.fields, kThreads);
    LEBM_LAUNCH(merge_columns_kernel<T>, unsigned(blocks), kThreads, 0, stream, task);
  }
}

}  // namespace lebm::cuda
