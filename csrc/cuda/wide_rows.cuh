// The row passes at D > 4: tile by tile, the queries of a thread block with the latents of its
// split.
//
//   S = sum_n p~,   p~ = exp2(-c (E - m) + log2 w + a),   and sum p~ (E - m)
//   for each dimension: sums of p~ (y - s g), p~ g (y - s g) and p~ g
//
//   y, scale [B, M, D]; decoded [B, N, D] -> F [B, M], state [B, M, 4], slopes [B, M, D]
//
// wide_tile.cuh divides a tile over the threads, and wide_query.cuh has the shift (m, a). The sums
// of a tile, in T, are added to sums in double: those of p~ in registers, those for each dimension
// (wide_moments.cuh) in `vectors` [num_splits, B M, 3, D]. In the second and third pass p~ is that
// of narrow_later_rows.cuh.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "finish.cuh"
#include "fold.cuh"
#include "load.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"
#include "wide_moments.cuh"
#include "wide_query.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

constexpr int kWideFields = kFields<0, kEverything>;

// Finds the least energy of the tile and its latent, the first of equals.
template <typename T>
__device__ __forceinline__ void find_least(WideQuery<T>& own, int64_t start,
                                           const T (&e)[kOwn][kPer<T>],
                                           const T (&weights)[kPer<T>]) {
  T least[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    least[i] = infinity(T());
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      if (weights[j] > -infinity(T())) least[i] = lesser(least[i], e[i][j]);
    }
  }
  fold<1>(least, [](T a, T b) { return lesser(a, b); });
  const bool is_less = least[0] < own.least;
  if (is_less) own.least = least[0];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (!__shfl_sync(kAllLanes, int(is_less), i * kLanesPerQuery)) continue;
    const T wanted = __shfl_sync(kAllLanes, least[0], i * kLanesPerQuery);
    unsigned place = kTileOthers<T>;
#pragma unroll
    for (int j = kPer<T> - 1; j >= 0; --j) {
      if (weights[j] > -infinity(T()) && e[i][j] == wanted) place = other_of_lane<T>(j);
    }
    place = __reduce_min_sync(kAllLanes, place);
    if (lane_of_thread() / kLanesPerQuery == i) own.index = start + place;
  }
}

// Adds a tile to the sums of the warp's queries, and replaces its energies by p~. Returns the
// factor that has rescaled the sums of this lane's query.
template <typename T, RowPass kPass, int kWants>
__device__ __forceinline__ T add_tile(WideQuery<T>& own, int64_t start,
                                      const WideTile<T, false>& tile, T (&e)[kOwn][kPer<T>]) {
  constexpr bool kHasEnergy = kPass == RowPass::kSecond || kWants == kEverything;
  T weights[kPer<T>], mass[kOwn], energy[kOwn], least[kOwn], factor = T(1);
  double extra[kOwn];
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) weights[j] = tile.weight[other_of_lane<T>(j)];
  if (kPass == RowPass::kFirst && kWants == kEverything) find_least(own, start, e, weights);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    WideShift<T> q = shift_of<T, kPass>(own, i);
    mass[i] = energy[i] = T(0);
    least[i] = infinity(T());
    extra[i] = 0;
    T pairs[kPer<T>];
    if constexpr (kPass == RowPass::kFirst) {
      first_pairs_of(own, i, e[i], weights, q, factor, pairs);
    } else {
      if (kPass == RowPass::kSecond && q.regime == Regime::kCold) {
        find_shift<T, kPass>(own, i, e[i], weights, q, factor);
      }
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) {
        pairs[j] = weights[j] == -infinity(T())
                       ? T(0)
                       : later_pair_of<T, kPass>(q, e[i][j], weights[j], extra[i], least[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      mass[i] += pairs[j];
      const T excess = e[i][j] - q.m;
      if (kPass == RowPass::kSecond) {
        if (pairs[j] > T(0)) energy[i] = fused(pairs[j], excess, energy[i]);
      } else if (kHasEnergy) {
        energy[i] = fused(pairs[j], lesser(excess, T(Range<T>::kLargest)), energy[i]);
      }
      e[i][j] = pairs[j];
    }
  }
  fold_sums<1>(mass);
  own.mass += double(mass[0]);
  if (kHasEnergy) {
    fold_sums<1>(energy);
    own.energy += double(energy[0]);
  }
  if (kPass != RowPass::kFirst) {
    fold_sums<1>(extra);
    own.extra += extra[0];
    fold<1>(least, [](T a, T b) { return lesser(a, b); });
    own.least = lesser(own.least, least[0]);
  }
  return factor;
}

template <typename T, RowPass kPass, bool kHasScale, int kWants>
__global__ void __launch_bounds__(kThreads)
    wide_rows_kernel(const __grid_constant__ RowTask<T> task) {
  using Tile = WideTile<T, false>;
  LEBM_SHARED(Tile, tiles, [1]);
  Tile& tile = tiles[0];
  const Problem<T>& p = task.problem;
  const int64_t blocks = (p.M + kTileOwn - 1) / kTileOwn, b = blockIdx.x / blocks;
  const Items own = items_from(blockIdx.x % blocks * kTileOwn, kTileOwn, p.M);
  const int64_t m = own.first + warp_of_thread() * kOwn + lane_of_thread() / kLanesPerQuery;
  const int64_t query = b * p.M + m;
  WideQuery<T> q = wide_query<T, kPass>(task, b, m);
  const bool active = kPass == RowPass::kFirst || q.regime == Regime::kHot ||
                      (q.regime == Regime::kCold && kPass == RowPass::kSecond);
  if (!__syncthreads_or(active)) return;

  MomentTotals totals = {
      task.vectors + 3 * (blockIdx.y * p.B * p.M + b * p.M + own.first) * p.D,
      3 * p.D,
      {task.out.slope_y != nullptr, task.out.slope_scale != nullptr, task.out.mean != nullptr},
      true};
  const int64_t begin = blockIdx.y * task.plan.split_size;
  const int64_t end = begin + task.plan.split_size < p.N ? begin + task.plan.split_size : p.N;
  // The third pass has its shift; the others begin with a sample.
  constexpr int64_t kTile = kTileOthers<T>, kSampleTile = kPass == RowPass::kThird ? 0 : kTile;
  for (int64_t start = begin - kSampleTile; start < end; start += kTile) {
    const bool is_sample = start < begin;
    const Items latents = is_sample ? sample_of(p.N, kTile) : items_from(start, kTile, end);
    T e[kOwn][kPer<T>];
    load_weights(p, task.normaliser, b, latents, tile);
    tile_energies<T, false, kHasScale>(p, b, own, latents, tile, e);
    if (is_sample) {
      sample_shift<T, kPass>(task, query, tile, e, q);
    } else {
      const T factor = add_tile<T, kPass, kWants>(q, start, tile, e);
      if constexpr (kWants != kValue) {
        if (task.vectors) {
          store_pairs(e, tile);
          add_moments<T, false, kHasScale, kWants == kEverything ? 3 : 1>(p, b, own, latents,
                                                                          factor, totals, tile);
          totals.is_first = false;
        }
      }
    }
    __syncthreads();  // the tile is read
  }

  if (lane_of_thread() % kLanesPerQuery != 0 || m >= p.M) return;
  const double last = kPass == RowPass::kFirst ? double(q.index) : q.extra;
  const double fields[kWideFields] = {double(q.m), double(q.a),     q.mass, q.energy,
                                      0.0,         double(q.least), last};
  store_partial(task, blockIdx.y, query, fields);
}

// Merges the splits of each query and finishes the query, one thread block per query.
template <typename T, RowPass kPass>
__global__ void __launch_bounds__(kThreads)
    wide_finish_kernel(const __grid_constant__ RowTask<T> task) {
  const Problem<T>& p = task.problem;
  const int64_t query = blockIdx.x, b = query / p.M, m = query % p.M;
  const Regime regime =
      kPass == RowPass::kFirst ? Regime::kWarm : later_regime(task, b, m, kPass == RowPass::kThird);
  if (kPass != RowPass::kFirst && regime != Regime::kHot &&
      !(regime == Regime::kCold && kPass == RowPass::kSecond)) {
    return;
  }
  const double beta = double(load(p.beta, b, m));
  const double c = kPass != RowPass::kFirst || is_cold<T>(beta)
                       ? double(INFINITY)
                       : (beta >= 0 ? double(T(beta * kLog2E)) : 0.0);
  double all[kWideFields] = {0, 0, 0, 0, 0, double(INFINITY), 0}, extra = 0;
  for (int64_t split = 0; split < task.plan.num_splits; ++split) {
    double fields[kWideFields];
    load_partial(task, split, query, fields);
    extra += fields[6];
    merge<0, kEverything>(c, all, fields);
  }
  __syncthreads();  // all threads have read the state, which thread 0 changes
  const double least = task.out.energy ? all[5] : -double(INFINITY);
  Totals totals = {all[0], all[1], all[2], all[3], all[4], least, nullptr, nullptr, nullptr};
  if (kPass == RowPass::kThird) {
    if (threadIdx.x == 0) finish_third(task, b, m, all[2], extra);
    return;
  }
  LEBM_SHARED(double, divisor, [1]);
  if (threadIdx.x == 0) {
    if (regime == Regime::kHot) {
      finish_hot(task, b, m, totals, extra, -all[5]);
    } else {
      divisor[0] = regime == Regime::kCold ? finish_cold(task, b, m, totals)
                                           : finish_first(task, b, m, totals);
      if (kPass == RowPass::kFirst && task.out.index) task.out.index[query] = int64_t(all[6]);
    }
  }
  __syncthreads();  // the divisor is written
  if (regime == Regime::kHot || !(task.out.slope_y || task.out.slope_scale || task.out.mean))
    return;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    double sums[3] = {0, 0, 0};
    for (int64_t split = 0; split < task.plan.num_splits; ++split) {
      double fields[kWideFields];
      load_partial(task, split, query, fields);
      if (fields[2] == 0) continue;
      const double factor = exp2(log2_rescale(c, fields[0], fields[1], all[0], all[1]));
      const double* from = task.vectors + 3 * (split * p.B * p.M + query) * p.D + d;
      if (task.out.slope_y) sums[0] += factor * from[0];
      if (task.out.slope_scale) sums[1] += factor * from[p.D];
      if (task.out.mean) sums[2] += factor * from[2 * p.D];
    }
    store_vectors(task.out, query * p.D + d, divisor[0], sums[0], sums[1], sums[2]);
  }
}

}  // namespace lebm::cuda
