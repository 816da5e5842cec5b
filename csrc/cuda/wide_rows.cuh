// The row passes at D > 4: tile by tile, the queries of a thread block with the latents of its
// split.
//
//   S = sum_n p~,   p~ = exp2(-c (E - m) + log2 w + a),   and sum p~ (E - m)
//   for each dimension: sums of p~ (y - s g), p~ g (y - s g) and p~ g
//
//   y, scale [B, M, D]; decoded [B, N, D] -> F [B, M], state [B, M, 4], slopes [B, M, D]
//
// The sums for each dimension multiply the tile of p~ by differences, and are added in double to
// `vectors` [num_splits, B M, 3, D], whose elements have one thread each. The shift (m, a) is the
// energy of a query's best latent so far; it is replaced when a tile has a latent that is better by
// 20 bits. In the second and third pass p~ is that of narrow_later_rows.cuh.
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
#include "wide_tile.cuh"

namespace lebm::cuda {

constexpr int kWideFields = kFields<0, kEverything>;

constexpr double kLag = 20;  // bits by which a latent may be better than the shift

// The mask of this thread's row of 16, which is half a warp.
__device__ __forceinline__ unsigned row_mask() {
  return 0xffffu << (threadIdx.x / kColumns % 2 * kColumns);
}

// Whether a latent is a better shift than another: by log2 w - c E, or at c = inf by the lesser E.
template <typename T>
__device__ __forceinline__ bool is_better(T minus_c, T energy, T weight, T than_energy,
                                          T than_weight) {
  if (!(energy < infinity(T())) || !(weight > -infinity(T()))) return false;
  if (!(than_energy < infinity(T()))) return true;
  if (energy == than_energy) return weight > than_weight;
  if (minus_c == -infinity(T())) return energy < than_energy;
  return fused(minus_c, energy - than_energy, weight - than_weight) > T(0);
}

// The best shift of a row's latents for one query; its 16 threads get the same.
template <typename T>
__device__ __forceinline__ void best_of_row(T minus_c, const T (&e)[kPerThread<T>],
                                            const WideTile<T>& tile, T& energy, T& weight) {
  const int column = int(threadIdx.x) % kColumns;
  energy = infinity(T());
  weight = -infinity(T());
#pragma unroll
  for (int j = 0; j < kPerThread<T>; ++j) {
    const T w = tile.weight[column * kPerThread<T> + j];
    if (is_better(minus_c, e[j], w, energy, weight)) {
      energy = e[j];
      weight = w;
    }
  }
  const unsigned mask = row_mask();
  for (int delta = kColumns / 2; delta > 0; delta /= 2) {
    const T other = __shfl_xor_sync(mask, energy, delta);
    const T other_weight = __shfl_xor_sync(mask, weight, delta);
    if (is_better(minus_c, other, other_weight, energy, weight)) {
      energy = other;
      weight = other_weight;
    }
  }
  // Threads may hold different ones of two that are equally good.
  energy = __shfl_sync(mask, energy, 0, kColumns);
  weight = __shfl_sync(mask, weight, 0, kColumns);
}

template <typename T>
struct WideQuery {
  Regime regime;
  T m, a, minus_c, beta, gap, unit;
  double mass, energy;
  double extra;  // second pass: sum w (exp(-beta (E - m)) - 1); third pass: K sum w
  T least;
  int64_t index;
};

// Adds the sums over one tile of p~ times differences to those in memory.
template <typename T, bool kHasScale, int kWants>
__device__ __forceinline__ void add_vectors(const RowTask<T>& task, int64_t b, int64_t first_query,
                                            const LatentRange& latents, const WideTile<T>& tile,
                                            bool is_first) {
  const Problem<T>& p = task.problem;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const bool wants[3] = {task.out.slope_y != nullptr, task.out.slope_scale != nullptr,
                         task.out.mean != nullptr};
  for (int64_t d = column; d < p.D; d += kColumns) {
    T y[kQueriesPerRow], s[kQueriesPerRow], residual[kQueriesPerRow], stretch[kQueriesPerRow],
        mean[kQueriesPerRow];
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
      const int64_t q = first_query + row * kQueriesPerRow + i;
      y[i] = q < p.M ? load(p.y, b, q, d) : T(0);
      s[i] = kHasScale && q < p.M && p.scale.data ? load(p.scale, b, q, d) : T(1);
      residual[i] = stretch[i] = mean[i] = T(0);
    }
    for (int j = 0; j < int(latents.count); ++j) {
      if (tile.weight[j] == -infinity(T())) continue;
      const T g = load(p.decoded, b, latents.first + j, d);
#pragma unroll
      for (int i = 0; i < kQueriesPerRow; ++i) {
        const T pair = tile.p[j * kPitch + row * kQueriesPerRow + i];
        const T x = kHasScale ? fused(-s[i], g, y[i]) : y[i] - g;
        residual[i] = fused(pair, x, residual[i]);
        if (kWants == kEverything) {
          stretch[i] = fused(pair * x, g, stretch[i]);
          mean[i] = fused(pair, g, mean[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
      const int q = row * kQueriesPerRow + i;
      if (first_query + q >= p.M) continue;
      const double factor = double(tile.factor[q]);
      const int64_t query = blockIdx.y * p.B * p.M + b * p.M + first_query + q;
      double* const to = task.vectors + 3 * query * p.D + d;
      const double found[3] = {double(residual[i]), double(stretch[i]), double(mean[i])};
      for (int k = 0; k < 3; ++k) {
        if (wants[k]) to[k * p.D] = is_first ? found[k] : factor * to[k * p.D] + found[k];
      }
    }
  }
}

// Returns p~ of a pair. In the second and third pass it also adds the pair to q.extra.
template <typename T, RowPass kPass>
__device__ __forceinline__ T add_pair(WideQuery<T>& q, T e, T weight) {
  if constexpr (kPass == RowPass::kFirst) {
    if (q.a == infinity(T())) return e != e || weight != weight ? T(not_a_number()) : T(0);
    return power(fused(q.minus_c, e - q.m, weight + q.a));
  } else if (q.regime == Regime::kCold) {
    if (e != e || weight != weight) return T(not_a_number());
    return e == q.m && e < infinity(T()) ? power(weight + q.a) : T(0);
  } else {
    const T w = power(weight), excess = e - q.m;
    if (!(w > T(0))) return T(0);
    if (kPass == RowPass::kThird) {
      const T ratio = q.beta > T(0) ? q.unit / q.beta : T(0);
      q.extra += double(curvature_term(q.beta, q.unit, ratio, excess, q.gap, w));
    } else {
      const T p_minus_1 = excess < infinity(T()) ? power_minus_1(-q.beta * excess) : T(-1);
      q.extra += double(w * p_minus_1);
      q.least = lesser(q.least, excess < T(0) ? excess : -excess);
    }
    return w;
  }
}

// Makes a tile's best latent the shift if necessary. Returns the factor that rescales the sums so
// far.
template <typename T>
__device__ __forceinline__ T update_shift(WideQuery<T>& q, T energy, T weight) {
  if (!(energy < infinity(T()))) return T(1);
  const bool no_shift = q.a == infinity(T());
  T factor = T(1);
  if (q.regime == Regime::kCold) {
    if (!no_shift && energy > q.m) return factor;
    if (!no_shift && energy == q.m && !(weight + q.a > T(1))) return factor;
    factor = no_shift || energy < q.m ? T(0) : power(-rint(weight) - q.a);
  } else {
    if (!no_shift && !(fused(q.minus_c, energy - q.m, weight + q.a) > T(kLag))) return factor;
    const double exponent =
        log2_rescale(-double(q.minus_c), double(q.m), double(q.a), double(energy), -double(weight));
    factor = no_shift ? T(0) : power(T(exponent));
    q.energy += (double(q.m) - double(energy)) * q.mass;
  }
  // A NaN sum stays NaN, even if the factor is 0.
  q.mass *= double(factor);
  q.energy *= double(factor);
  q.m = energy;
  // For finish_cold, a must be a whole number.
  q.a = q.regime == Regime::kCold ? -rint(weight) : -weight;
  return factor;
}

template <typename T, RowPass kPass, bool kHasScale, int kWants>
__global__ void __launch_bounds__(kThreads)
    wide_rows_kernel(const __grid_constant__ RowTask<T> task) {
  LEBM_SHARED(WideTile<T>, tile, [1]);
  constexpr int kPer = kPerThread<T>;
  const Problem<T>& p = task.problem;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const int64_t blocks = (p.M + kTileQueries - 1) / kTileQueries;
  const int64_t b = blockIdx.x / blocks, first_query = blockIdx.x % blocks * kTileQueries;

  WideQuery<T> queries[kQueriesPerRow];
  bool active = false;
#pragma unroll
  for (int i = 0; i < kQueriesPerRow; ++i) {
    WideQuery<T>& q = queries[i];
    const int64_t m = first_query + row * kQueriesPerRow + i;
    q = {Regime::kInvalid, T(0), infinity(T()), T(0), T(0), T(0), T(1), 0, 0, 0, infinity(T()), 0};
    if (m >= p.M) continue;
    q.beta = load(p.beta, b, m);
    if (kPass == RowPass::kFirst) {
      q.regime = Regime::kWarm;
      const double beta = double(q.beta);
      q.minus_c = beta >= 0 && !is_cold<T>(beta) ? -T(beta * kLog2E) : T(0);
      active = true;
    } else {
      q.regime = later_regime(task, b, m, kPass == RowPass::kThird);
      if (q.regime == Regime::kHot) q.a = T(0);
      const double* state = task.out.state + kStateSize * (b * p.M + m);
      if (kPass == RowPass::kThird) {
        q.m = T(state[kStateShift]);
        q.gap = T(state[kStateGap]);
        q.unit = kPass == RowPass::kThird ? unit_of(task, b, m) : T(1);
      }
      active = active || q.regime == Regime::kHot ||
               (q.regime == Regime::kCold && kPass == RowPass::kSecond);
    }
  }
  if (!__syncthreads_or(active)) return;

  T e[kQueriesPerRow][kPer];
  if (kPass != RowPass::kThird) {
    const LatentRange sample = {0, p.N < kTileLatents<T> ? p.N : kTileLatents<T>, true};
    load_weights(p, task.normaliser, b, sample, tile[0]);
    tile_energies<T, kHasScale>(p, b, first_query, sample, tile[0], e);
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
      WideQuery<T>& q = queries[i];
      T energy, weight;
      best_of_row(q.regime == Regime::kWarm ? q.minus_c : -infinity(T()), e[i], tile[0], energy,
                  weight);
      if (kPass == RowPass::kFirst) {
        update_shift(q, energy, weight);
      } else if (q.regime == Regime::kHot) {
        // If the sample has no finite energy, the shift of the first pass stays.
        const int64_t m = first_query + row * kQueriesPerRow + i;
        q.m = energy < infinity(T()) ? energy
                                     : T(task.out.state[kStateSize * (b * p.M + m) + kStateShift]);
      }
    }
    __syncthreads();  // the sample is read
  }

  const int64_t begin = blockIdx.y * task.plan.split_size;
  const int64_t end = begin + task.plan.split_size < p.N ? begin + task.plan.split_size : p.N;
  for (int64_t start = begin; start < end; start += kTileLatents<T>) {
    const LatentRange latents = {
        start, end - start < kTileLatents<T> ? end - start : kTileLatents<T>, false};
    load_weights(p, task.normaliser, b, latents, tile[0]);
    tile_energies<T, kHasScale>(p, b, first_query, latents, tile[0], e);
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
      WideQuery<T>& q = queries[i];
      T factor = T(1);
      if (kPass == RowPass::kFirst || (kPass == RowPass::kSecond && q.regime == Regime::kCold)) {
        T energy, weight;
        best_of_row(q.regime == Regime::kCold ? -infinity(T()) : q.minus_c, e[i], tile[0], energy,
                    weight);
        factor = update_shift(q, energy, weight);
      }
      T sum = T(0), weighted = T(0);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int n = column * kPer + j;
        const T weight = tile[0].weight[n];
        const T pair = weight == -infinity(T()) ? T(0) : add_pair<T, kPass>(q, e[i][j], weight);
        sum += pair;
        const T excess = e[i][j] - q.m;
        if (kPass == RowPass::kSecond) {
          if (pair > T(0)) weighted = fused(pair, excess, weighted);
        } else if (kWants == kEverything) {
          weighted = fused(pair, lesser(excess, T(Range<T>::kLargest)), weighted);
          if (weight > -infinity(T()) && e[i][j] < q.least) {
            q.least = e[i][j];
            q.index = start + n;
          }
        }
        if (kWants != kValue) tile[0].p[n * kPitch + row * kQueriesPerRow + i] = pair;
      }
      q.mass += double(sum);
      q.energy += double(weighted);
      if (kWants != kValue && column == 0) tile[0].factor[row * kQueriesPerRow + i] = factor;
    }
    if (kWants != kValue) {
      __syncthreads();  // p~ and the factors are written
      if (task.vectors)
        add_vectors<T, kHasScale, kWants>(task, b, first_query, latents, tile[0], start == begin);
    }
    __syncthreads();  // the tile is read
  }

#pragma unroll
  for (int i = 0; i < kQueriesPerRow; ++i) {
    WideQuery<T>& q = queries[i];
    for (int delta = kColumns / 2; delta > 0; delta /= 2) {
      q.mass += __shfl_xor_sync(row_mask(), q.mass, delta);
      q.energy += __shfl_xor_sync(row_mask(), q.energy, delta);
      q.extra += __shfl_xor_sync(row_mask(), q.extra, delta);
      const T least = __shfl_xor_sync(row_mask(), q.least, delta);
      const int64_t index = __shfl_xor_sync(row_mask(), q.index, delta);
      if (least < q.least || (least == q.least && index < q.index)) {
        q.least = least;
        q.index = index;
      }
    }
    const int64_t m = first_query + row * kQueriesPerRow + i;
    if (column != 0 || m >= p.M) continue;
    const double last = kPass == RowPass::kFirst ? double(q.index) : q.extra;
    const double fields[kWideFields] = {double(q.m), double(q.a),     q.mass, q.energy,
                                        0.0,         double(q.least), last};
    store_partial(task, blockIdx.y, b * p.M + m, fields);
  }
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
