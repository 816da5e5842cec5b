// The column pass at D > 4: tile by tile, the latents of a thread block with the queries of its
// split.
//
//   grad_g[n] = -2 sum_b G p s (y - s g),   grad_r[n] = sum_b G p,   grad_l[n]: see column_task.cuh
//
//   y, scale [B, M, D]; decoded [B, N, D]; records [B M, width] -> partial [num_splits, B N, D + 2]
//
// wide_tile.cuh divides a tile over the threads. The sums of a tile, in T, are added to sums in
// double: those for each dimension (wide_moments.cuh) in `partial`, the others in registers. Lane l
// keeps those of its warp's latent l / 4.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "column_task.cuh"
#include "device.cuh"
#include "fold.cuh"
#include "load.cuh"
#include "splits.cuh"
#include "wide_moments.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

template <typename T>
__device__ __forceinline__ T grad_times_p(const T* query, T energy, T weight) {
  const T whole = weight + query[kWhole];
  if (query[kRate] == cold_rate<T>()) {
    if (energy != energy) return energy;
    return energy == query[kShift] ? power(whole) * query[kFactor] : T(0);
  }
  return power(fused(query[kRate], energy - query[kShift], whole)) * query[kFactor];
}

// Replaces the energies of a tile by G p, and sums over the queries: G p, and the terms of grad_l
// if they are wanted. Afterwards a lane has the sums of its latent in by_energy[0], by_weight[0].
template <typename T>
__device__ __forceinline__ void add_queries(const ColumnTask<T>& task, const T* records,
                                            const Items& queries, const WideTile<T, true>& tile,
                                            T (&e)[kOwn][kPer<T>], T (&by_energy)[kOwn],
                                            T (&by_weight)[kOwn]) {
  const bool wants_weights = task.arguments.grad_log_weight;
  T weights[kOwn];
  read_vectors(tile.weight + warp_of_thread() * kOwn, weights);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) by_energy[i] = by_weight[i] = T(0);
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    const int q = other_of_lane<T>(j);
    const bool inside = q < queries.count;
    T query[kExtended] = {};
    if (inside) {
      const T* const record = records + queries.at(q) * task.width;
      read_vectors(record, reinterpret_cast<T(&)[kBasic]>(query));
      if (wants_weights) {
        read_vectors(record + kBasic, reinterpret_cast<T(&)[kBasic]>(query[kBasic]));
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool used = inside && weights[i] != -infinity(T());
      const T grad_p = used ? grad_times_p(query, e[i][j], weights[i]) : T(0);
      by_energy[i] += grad_p;
      if (wants_weights && used) {
        by_weight[i] += weight_term(query, e[i][j] - query[kShift], power(weights[i]), grad_p);
      }
      e[i][j] = grad_p;
    }
  }
  fold_sums<1>(by_energy);
  if (wants_weights) fold_sums<1>(by_weight);
}

template <typename T, bool kHasScale>
__global__ void __launch_bounds__(kThreads)
    wide_columns_kernel(const __grid_constant__ ColumnTask<T> task) {
  using Tile = WideTile<T, true>;
  LEBM_SHARED(Tile, tiles, [1]);
  Tile& tile = tiles[0];
  const Problem<T>& p = task.problem;
  const int64_t blocks = (p.N + kTileOwn - 1) / kTileOwn, b = blockIdx.x / blocks;
  const Items own = items_from(blockIdx.x % blocks * kTileOwn, kTileOwn, p.N);
  load_weights(p, task.normaliser, b, own, tile);

  double* const partial =
      task.partial + (blockIdx.y * p.B * p.N + b * p.N + own.first) * task.fields;
  MomentTotals totals = {partial, task.fields, {true, false, false}, true};
  double by_energy = 0, by_weight = 0;
  const int64_t begin = blockIdx.y * task.split_size;
  const int64_t end = begin + task.split_size < p.M ? begin + task.split_size : p.M;
  for (int64_t start = begin; start < end; start += kTileOthers<T>) {
    const Items queries = items_from(start, kTileOthers<T>, end);
    T e[kOwn][kPer<T>], energy_sums[kOwn], weight_sums[kOwn];
    tile_energies<T, true, kHasScale>(p, b, own, queries, tile, e);
    add_queries(task, task.records + b * p.M * task.width, queries, tile, e, energy_sums,
                weight_sums);
    by_energy += double(energy_sums[0]);
    by_weight += double(weight_sums[0]);
    if (task.arguments.grad_decoded) {
      store_pairs(e, tile);
      add_moments<T, true, kHasScale, 1>(p, b, own, queries, T(1), totals, tile);
      totals.is_first = false;
    }
  }

  constexpr int kLanesPerLatent = kLanes / kOwn;
  const int n = warp_of_thread() * kOwn + lane_of_thread() / kLanesPerLatent;
  if (lane_of_thread() % kLanesPerLatent != 0 || n >= own.count) return;
  double* const to = partial + n * task.fields + p.D;
  to[0] = by_energy;
  to[1] = by_weight;
}

}  // namespace lebm::cuda
