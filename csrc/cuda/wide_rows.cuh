// The row pass at D > 4: tiles of pairs, a block's queries against the latents of its split.
//
//   S = sum_n p~,   p~ = exp2(-c (E - m) + log2 w + a),   beside sum p~ (E - m) and, for each
//   dimension, sums of p~ (y - s g), p~ g (y - s g) and p~ g: products of the tile of p~ with
//   differences, added in double to `vectors` [splits, B M, 3, D], of which a thread has its own.
//
// The reference (m, a) is a query's best energy so far, taken from a tile that beats it by 20 bits.
// In the second look p~ is what narrow_second.cuh has: hot, cold, or of dF/dbeta.
#pragma once

#include "finish.cuh"
#include "narrow_second.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

enum class Sweep { kFirst, kSecond, kRelative };

constexpr int kWideFields = kFields<0, kEverything>;

constexpr double kLag = 20;  // bits by which a tile may beat the reference

// The lanes of a thread's row: half a warp.
__device__ __forceinline__ unsigned row_mask() {
  return 0xffffu << (threadIdx.x / kColumns % 2 * kColumns);
}

// The better reference of two: the larger log2 w - c E, or at c = inf the lesser E.
template <typename T>
__device__ __forceinline__ bool is_better(T minus_c, T energy, T weight, T than_energy,
                                          T than_weight) {
  if (!(energy < infinity(T())) || !(weight > -infinity(T()))) return false;
  if (!(than_energy < infinity(T()))) return true;
  if (energy == than_energy) return weight > than_weight;
  if (minus_c == -infinity(T())) return energy < than_energy;
  return fused(minus_c, energy - than_energy, weight - than_weight) > T(0);
}

// The best of a row's energies, the same for its 16 threads.
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
    const T its_weight = __shfl_xor_sync(mask, weight, delta);
    if (is_better(minus_c, other, its_weight, energy, weight)) {
      energy = other;
      weight = its_weight;
    }
  }
  // Where two are equally good, threads may differ.
  energy = __shfl_sync(mask, energy, 0, kColumns);
  weight = __shfl_sync(mask, weight, 0, kColumns);
}

template <typename T>
struct WideQuery {
  Mode mode;
  T m, a, minus_c, beta, gap;
  double sum, energy, minus;
  T least;
  int64_t index;
};

// The sums over one tile of p~ times differences, added to those in memory.
template <typename T, bool kHasScale, int kWants>
__device__ __forceinline__ void add_vectors(const RowTask<T>& task, int64_t b, int64_t first_query,
                                            const Latents& latents, const WideTile<T>& tile,
                                            bool is_first) {
  const Problem<T>& p = task.problem;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const bool wants[3] = {task.out.slope_y != nullptr, task.out.slope_scale != nullptr,
                         task.out.mean != nullptr};
  for (int64_t d = column; d < p.D; d += kColumns) {
    T y[kQueriesARow], s[kQueriesARow], residual[kQueriesARow], stretch[kQueriesARow],
        mean[kQueriesARow];
#pragma unroll
    for (int i = 0; i < kQueriesARow; ++i) {
      const int64_t q = first_query + row * kQueriesARow + i;
      y[i] = q < p.M ? load(p.y, b, q, d) : T(0);
      s[i] = kHasScale && q < p.M && p.scale.data ? load(p.scale, b, q, d) : T(1);
      residual[i] = stretch[i] = mean[i] = T(0);
    }
    for (int j = 0; j < int(latents.count); ++j) {
      if (tile.weight[j] == -infinity(T())) continue;
      const T g = load(p.decoded, b, latents.first + j, d);
#pragma unroll
      for (int i = 0; i < kQueriesARow; ++i) {
        const T pair = tile.p[j * kPitch + row * kQueriesARow + i];
        const T x = kHasScale ? fused(-s[i], g, y[i]) : y[i] - g;
        residual[i] = fused(pair, x, residual[i]);
        if (kWants == kEverything) {
          stretch[i] = fused(pair * x, g, stretch[i]);
          mean[i] = fused(pair, g, mean[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQueriesARow; ++i) {
      const int q = row * kQueriesARow + i;
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

// What of a pair is summed: p~, and in the second look further sums. Returns p~.
template <typename T, Sweep kSweep>
__device__ __forceinline__ T add_pair(WideQuery<T>& q, T e, T weight) {
  if constexpr (kSweep == Sweep::kFirst) {
    if (q.a == infinity(T())) return e != e || weight != weight ? T(not_a_number()) : T(0);
    return power(fused(q.minus_c, e - q.m, weight + q.a));
  } else if (q.mode == Mode::kCold) {
    if (e != e || weight != weight) return T(not_a_number());
    return e == q.m && e < infinity(T()) ? power(weight + q.a) : T(0);
  } else {
    const T w = power(weight), excess = e - q.m;
    if (!(w > T(0))) return T(0);
    if (kSweep == Sweep::kRelative) {
      const T inverse = q.beta > T(0) ? T(1) / q.beta : T(0);
      q.minus += double(relative_term(q.beta, inverse, excess, q.gap, w));
    } else {
      const T minus = excess < infinity(T()) ? power_minus_1(-q.beta * excess) : T(-1);
      q.minus += double(w * minus);
      q.least = lesser(q.least, excess < T(0) ? excess : -excess);
    }
    return w;
  }
}

// Takes a tile's best for the reference where it is needed; the factor for the sums so far.
template <typename T, Sweep kSweep>
__device__ __forceinline__ T update_reference(WideQuery<T>& q, T energy, T weight) {
  if (!(energy < infinity(T()))) return T(1);
  const bool none = q.a == infinity(T());
  T by = T(1);
  if (q.mode == Mode::kCold) {
    if (!none && energy > q.m) return by;
    if (!none && energy == q.m && !(weight + q.a > T(1))) return by;
    by = none || energy < q.m ? T(0) : power(-rint(weight) - q.a);
  } else {
    if (!none && !(fused(q.minus_c, energy - q.m, weight + q.a) > T(kLag))) return by;
    const double shift =
        shift_of(-double(q.minus_c), double(q.m), double(q.a), double(energy), -double(weight));
    by = none ? T(0) : power(T(shift));
    q.energy += (double(q.m) - double(energy)) * q.sum;
  }
  // 0 times what is not a number is not a number, and stays so.
  q.sum *= double(by);
  q.energy *= double(by);
  q.m = energy;
  // Whole, as finish_cold wants it.
  q.a = q.mode == Mode::kCold ? -rint(weight) : -weight;
  return by;
}

template <typename T, Sweep kSweep, bool kHasScale, int kWants>
__global__ void __launch_bounds__(kThreads)
    wide_rows_kernel(const __grid_constant__ RowTask<T> task) {
  LEBM_SHARED(WideTile<T>, tile, [1]);
  constexpr int kPer = kPerThread<T>;
  const Problem<T>& p = task.problem;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const int64_t blocks = (p.M + kTileQueries - 1) / kTileQueries;
  const int64_t b = blockIdx.x / blocks, first_query = blockIdx.x % blocks * kTileQueries;

  WideQuery<T> queries[kQueriesARow];
  bool looks = false;
#pragma unroll
  for (int i = 0; i < kQueriesARow; ++i) {
    WideQuery<T>& q = queries[i];
    const int64_t m = first_query + row * kQueriesARow + i;
    q = {Mode::kInvalid, T(0), infinity(T()), T(0), T(0), T(0), 0, 0, 0, infinity(T()), 0};
    if (m >= p.M) continue;
    q.beta = load(p.beta, b, m);
    if (kSweep == Sweep::kFirst) {
      q.mode = Mode::kWarm;
      const double beta = double(q.beta);
      q.minus_c = beta >= 0 && !is_cold<T>(beta) ? -T(beta * kLog2E) : T(0);
      looks = true;
    } else {
      q.mode = second_mode(task, b, m, kSweep == Sweep::kRelative);
      if (q.mode == Mode::kHot) q.a = T(0);
      const double* state = task.out.state + 3 * (b * p.M + m);
      if (kSweep == Sweep::kRelative) {
        q.m = T(state[0]);
        q.gap = T(state[2]);
      }
      looks = looks || q.mode == Mode::kHot || (q.mode == Mode::kCold && kSweep == Sweep::kSecond);
    }
  }
  if (!__syncthreads_or(looks)) return;

  T e[kQueriesARow][kPer];
  if (kSweep != Sweep::kRelative) {
    const Latents sample = {0, p.N < kTileLatents<T> ? p.N : kTileLatents<T>, true};
    load_latents(p, task.normaliser, b, sample, tile[0]);
    tile_energies<T, kHasScale>(p, b, first_query, sample, tile[0], e);
#pragma unroll
    for (int i = 0; i < kQueriesARow; ++i) {
      WideQuery<T>& q = queries[i];
      T energy, weight;
      best_of_row(q.mode == Mode::kWarm ? q.minus_c : -infinity(T()), e[i], tile[0], energy,
                  weight);
      if (kSweep == Sweep::kFirst) {
        update_reference<T, kSweep>(q, energy, weight);
      } else if (q.mode == Mode::kHot) {
        // Where the sample has none, that of the first look.
        const int64_t m = first_query + row * kQueriesARow + i;
        q.m = energy < infinity(T()) ? energy : T(task.out.state[3 * (b * p.M + m)]);
      }
    }
    __syncthreads();  // the sample is read
  }

  const int64_t begin = blockIdx.y * task.plan.split_latents;
  const int64_t end = begin + task.plan.split_latents < p.N ? begin + task.plan.split_latents : p.N;
  for (int64_t start = begin; start < end; start += kTileLatents<T>) {
    const Latents latents = {start, end - start < kTileLatents<T> ? end - start : kTileLatents<T>,
                             false};
    load_latents(p, task.normaliser, b, latents, tile[0]);
    tile_energies<T, kHasScale>(p, b, first_query, latents, tile[0], e);
#pragma unroll
    for (int i = 0; i < kQueriesARow; ++i) {
      WideQuery<T>& q = queries[i];
      T factor = T(1);
      if (kSweep == Sweep::kFirst || (kSweep == Sweep::kSecond && q.mode == Mode::kCold)) {
        T energy, weight;
        best_of_row(q.mode == Mode::kCold ? -infinity(T()) : q.minus_c, e[i], tile[0], energy,
                    weight);
        factor = update_reference<T, kSweep>(q, energy, weight);
      }
      T sum = T(0), weighted = T(0);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int n = column * kPer + j;
        const T weight = tile[0].weight[n];
        const T pair = weight == -infinity(T()) ? T(0) : add_pair<T, kSweep>(q, e[i][j], weight);
        sum += pair;
        const T excess = e[i][j] - q.m;
        if (kSweep == Sweep::kSecond) {
          if (pair > T(0)) weighted = fused(pair, excess, weighted);
        } else if (kWants == kEverything) {
          weighted = fused(pair, lesser(excess, T(Range<T>::kLargest)), weighted);
          if (weight > -infinity(T()) && e[i][j] < q.least) {
            q.least = e[i][j];
            q.index = start + n;
          }
        }
        if (kWants != kValue) tile[0].p[n * kPitch + row * kQueriesARow + i] = pair;
      }
      q.sum += double(sum);
      q.energy += double(weighted);
      if (kWants != kValue && column == 0) tile[0].factor[row * kQueriesARow + i] = factor;
    }
    if (kWants != kValue) {
      __syncthreads();  // p~ and the factors are written
      if (task.vectors)
        add_vectors<T, kHasScale, kWants>(task, b, first_query, latents, tile[0], start == begin);
    }
    __syncthreads();  // the tile is read
  }

#pragma unroll
  for (int i = 0; i < kQueriesARow; ++i) {
    WideQuery<T>& q = queries[i];
    for (int delta = kColumns / 2; delta > 0; delta /= 2) {
      q.sum += __shfl_xor_sync(row_mask(), q.sum, delta);
      q.energy += __shfl_xor_sync(row_mask(), q.energy, delta);
      q.minus += __shfl_xor_sync(row_mask(), q.minus, delta);
      const T least = __shfl_xor_sync(row_mask(), q.least, delta);
      const int64_t index = __shfl_xor_sync(row_mask(), q.index, delta);
      if (least < q.least || (least == q.least && index < q.index)) {
        q.least = least;
        q.index = index;
      }
    }
    const int64_t m = first_query + row * kQueriesARow + i;
    if (column != 0 || m >= p.M) continue;
    const double last = kSweep == Sweep::kFirst ? double(q.index) : q.minus;
    const double fields[kWideFields] = {double(q.m), double(q.a),     q.sum, q.energy,
                                        0.0,         double(q.least), last};
    store_partial(task, blockIdx.y, b * p.M + m, fields);
  }
}

// Joins the splits of a query and finishes: a block a query.
template <typename T, Sweep kSweep>
__global__ void __launch_bounds__(kThreads)
    wide_finish_kernel(const __grid_constant__ RowTask<T> task) {
  const Problem<T>& p = task.problem;
  const int64_t query = blockIdx.x, b = query / p.M, m = query % p.M;
  const Mode mode =
      kSweep == Sweep::kFirst ? Mode::kWarm : second_mode(task, b, m, kSweep == Sweep::kRelative);
  if (kSweep != Sweep::kFirst && mode != Mode::kHot &&
      !(mode == Mode::kCold && kSweep == Sweep::kSecond)) {
    return;
  }
  const double beta = double(load(p.beta, b, m));
  const double c = kSweep != Sweep::kFirst || is_cold<T>(beta)
                       ? double(INFINITY)
                       : (beta >= 0 ? double(T(beta * kLog2E)) : 0.0);
  double all[kWideFields] = {0, 0, 0, 0, 0, double(INFINITY), 0}, minus = 0;
  for (int64_t split = 0; split < task.plan.splits; ++split) {
    double fields[kWideFields];
    load_partial(task, split, query, fields);
    minus += fields[6];
    merge<0, kEverything>(c, all, fields);
  }
  // The state is read above by all before one of them changes it.
  __syncthreads();
  Totals totals = {all[0], all[1], all[2], all[3], all[4], nullptr, nullptr, nullptr};
  if (kSweep == Sweep::kRelative) {
    if (threadIdx.x == 0) finish_relative(task, b, m, all[2], minus);
    return;
  }
  LEBM_SHARED(double, divisor, [1]);
  if (threadIdx.x == 0) {
    if (mode == Mode::kHot) {
      finish_hot(task, b, m, totals, minus, -all[5]);
    } else {
      divisor[0] =
          mode == Mode::kCold ? finish_cold(task, b, m, totals) : finish_warm(task, b, m, totals);
      if (kSweep == Sweep::kFirst && task.out.index) task.out.index[query] = int64_t(all[6]);
    }
  }
  __syncthreads();  // the divisor is written
  if (mode == Mode::kHot || !(task.out.slope_y || task.out.slope_scale || task.out.mean)) return;
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    double sums[3] = {0, 0, 0};
    for (int64_t split = 0; split < task.plan.splits; ++split) {
      double fields[kWideFields];
      load_partial(task, split, query, fields);
      if (fields[2] == 0) continue;
      const double by = exp2(shift_of(c, fields[0], fields[1], all[0], all[1]));
      const double* from = task.vectors + 3 * (split * p.B * p.M + query) * p.D + d;
      if (task.out.slope_y) sums[0] += by * from[0];
      if (task.out.slope_scale) sums[1] += by * from[p.D];
      if (task.out.mean) sums[2] += by * from[2 * p.D];
    }
    store_vectors(task.out, query * p.D + d, divisor[0], sums[0], sums[1], sums[2]);
  }
}

}  // namespace lebm::cuda
