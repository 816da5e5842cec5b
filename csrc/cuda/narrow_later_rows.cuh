// The second and third row pass at D <= 4, for hot and cold queries (regime.cuh).
//
//   second, hot:   sum w (exp(-t) - 1), t = beta (E - m);  sum w (E - m);  sum w
//   second, cold:  sums of w, w (y - s g), ... over the latents of least energy
//   third, hot:    sum w (E - F)^2 Phi(-beta (E - F)) = -dF/dbeta = KL / beta^2, with the F of the
//                  second pass
//
// Shapes as in narrow_rows.cuh. The host does not read beta, and launches these passes for all
// queries. A thread block without hot or cold queries returns at once. Otherwise these queries
// divide all threads of the thread block among them. Every query is treated as if it had a scale,
// and every latent as if it had a weight and an energy: multiplying by 1 and adding 0 are exact.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "finish.cuh"
#include "load.cuh"
#include "narrow_tile.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

template <typename T, int kD>
struct LaterSums {
  static constexpr int kCount = kFields<kD, kEverything>;
  double fields[kCount], lost[kCount];
  T chunk[3];

  __device__ void flush() {
    fields[2] += double(chunk[0]);
    fields[3] += double(chunk[1]);
    fields[4] += double(chunk[2]);
    chunk[0] = chunk[1] = chunk[2] = T(0);
  }
};

// E - m, computed as in the first pass and the column pass.
template <typename T, int kD>
__device__ T excess_of(const Query<T, kD, true>& query, T beta, const T* record) {
  const T r = record[kD + 1];
  return is_steep(T(double(beta) * kLog2E), query.m) ? query.energy(record, r) - query.m
                                                     : query.energy(record, r - query.m);
}

// Adds a latent of weight w. The computed E - m of the shift's own latent is not exactly 0; query.a
// holds it and is subtracted, so that a single latent, or equal ones, have no slope.
template <typename T, int kD>
__device__ void add_hot(const Query<T, kD, true>& query, T beta, const T* record, T w,
                        LaterSums<T, kD>& sums) {
  if (!(w > T(0))) return;
  const T e = excess_of(query, beta, record) - query.a;
  const T p_minus_1 = e < infinity(T()) ? power_minus_1(-beta * e) : T(-1);
  sums.chunk[0] += w;
  sums.chunk[1] = fused(w, e, sums.chunk[1]);
  sums.chunk[2] = fused(w, p_minus_1, sums.chunk[2]);
  sums.fields[LaterSums<T, kD>::kCount - 2] =
      fmin(sums.fields[LaterSums<T, kD>::kCount - 2], -fabs(double(e)));
}

// Adds a latent if no energy so far is less.
template <typename T, int kD>
__device__ void add_cold(Query<T, kD, true>& query, const T* record, LaterSums<T, kD>& sums) {
  const T weight = record[kD];
  if (weight == -infinity(T())) return;
  const T e = query.energy(record, record[kD + 1]);
  if (e > query.m) return;
  double (&f)[LaterSums<T, kD>::kCount] = sums.fields;
  if (e != e || weight != weight) {
    f[2] = not_a_number();
    return;
  }
  if (e == infinity(T())) return;
  // Weights are relative to the heaviest of the latents of least energy, up to a power of 2.
  const bool less = e < query.m, heavier = !less && double(weight) + f[1] > 1;
  if (less || heavier) {
    const double factor = less ? (f[2] == f[2] ? 0.0 : 1.0) : exp2(-rint(double(weight)) - f[1]);
    for (int i = 2; i < LaterSums<T, kD>::kCount - 2; ++i) {
      f[i] *= factor;
      sums.lost[i] *= factor;
    }
    query.m = e;
    f[0] = double(e);
    f[1] = -rint(double(weight));
  }
  const double p = exp2(double(weight) + f[1]);
  add_exactly(f[2], sums.lost[2], p);
  for (int d = 0; d < kD; ++d) {
    const double x = double(query.difference(record, d)), g = double(record[d]);
    add_exactly(f[4 + d], sums.lost[4 + d], p * x);
    add_exactly(f[4 + kD + d], sums.lost[4 + kD + d], p * x * g);
    add_exactly(f[4 + 2 * kD + d], sums.lost[4 + 2 * kD + d], p * g);
  }
}

// The index of the nth flag that is set, or -1.
__device__ inline int nth_flag(const bool* flags, int count, int nth) {
  for (int i = 0; i < count; ++i) {
    if (flags[i] && nth-- == 0) return i;
  }
  return -1;
}

template <typename T, int kD, RowPass kPass>
__global__ void __launch_bounds__(kThreads)
    narrow_later_rows_kernel(const __grid_constant__ RowTask<T> task) {
  constexpr bool kThird = kPass == RowPass::kThird;
  using L = Layout<T, kD, true>;
  constexpr int kAll = kFields<kD, kEverything>;
  constexpr int kDoubles = L::kNumbers * int(sizeof(T)) / 8, kScratch = kAll * kThreads;
  LEBM_SHARED(double2, storage, [((kDoubles > kScratch ? kDoubles : kScratch) + 1) / 2]);
  T* const tile = reinterpret_cast<T*>(storage);
  const Problem<T>& problem = task.problem;
  const RowPlan& plan = task.plan;

  const int64_t blocks = (problem.M + plan.query_threads - 1) / plan.query_threads;
  const int64_t b = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * plan.query_threads;
  auto regime_of = [&](int64_t m) {
    const Regime regime = m < problem.M ? later_regime(task, b, m, kThird) : Regime::kInvalid;
    return regime == Regime::kCold && kThird ? Regime::kInvalid : regime;
  };
  auto is_active = [](Regime regime) { return regime == Regime::kHot || regime == Regime::kCold; };
  LEBM_SHARED(bool, flags, [kThreads]);
  const bool mine = int(threadIdx.x) < plan.query_threads;
  flags[threadIdx.x] = mine && is_active(regime_of(first + threadIdx.x));
  const int num_active = __syncthreads_count(flags[threadIdx.x]);  // the flags are written
  if (num_active == 0) return;
  const int query_threads = threads_for(num_active, 1);
  const int query_thread = int(threadIdx.x) % query_threads;
  const int latent_thread = int(threadIdx.x) / query_threads;
  const int latent_threads = kThreads / query_threads;
  const int slot = nth_flag(flags, plan.query_threads, query_thread);
  const bool active = slot >= 0;
  const int64_t m = first + slot;
  const Regime regime = active ? regime_of(m) : Regime::kInvalid;

  Query<T, kD, true> query;
  query.read(problem, b, active ? m : 0, active);
  const bool weighted = problem.log_weight.data;
  const T beta = active ? load(problem.beta, b, m) : T(0);
  LaterSums<T, kD> sums;
  for (int i = 0; i < kAll; ++i) sums.fields[i] = sums.lost[i] = 0;
  sums.chunk[0] = sums.chunk[1] = sums.chunk[2] = T(0);
  sums.fields[kAll - 1] = double(problem.N);
  query.m = infinity(T());
  T gap = T(0), unit = T(1), ratio = T(0);
  if (regime == Regime::kHot) {
    const double* state = task.out.state + kStateSize * (b * problem.M + m);
    query.m = T(state[kStateShift]);
    query.a = T(0);
    gap = T(state[kStateGap]);
    if (kThird) {
      unit = unit_of(task, b, m);
      ratio = beta > T(0) ? unit / beta : T(0);
    }
  }
  if (!kThird) {
    const int sample = int(problem.N < kSample ? problem.N : kSample);
    load_tile<T, kD, true>(task, b, 0, problem.N, sample, tile);
    __syncthreads();  // the sample is written
    if (regime == Regime::kHot) {
      const Best<T> best = best_of<T, kD, true, true>(query, -infinity(T()), tile, 0, sample, 1);
      if (best.record) {
        query.m = best.energy;
        query.a = excess_of(query, beta, best.record);
      }
      sums.fields[0] = double(query.m);
      sums.fields[1] = double(query.a);
    }
  }

  const int64_t begin = blockIdx.y * plan.split_size;
  const int64_t end = begin + plan.split_size < problem.N ? begin + plan.split_size : problem.N;
  for (int64_t start = begin; start < end; start += L::kTile) {
    const int count = int(end - start < L::kTile ? end - start : L::kTile);
    __syncthreads();  // the last tile is read
    load_tile<T, kD, true>(task, b, start, 0, count, tile);
    __syncthreads();  // the tile is written
    int added = 0;
    for (int i = latent_thread; i < count && active; i += latent_threads) {
      const T* record = tile + i * L::kWidth;
      const T w = weighted ? power(record[kD]) : T(1);
      if (kThird) {
        if (w > T(0)) {
          const T e = excess_of(query, beta, record);
          sums.chunk[0] += w;
          sums.chunk[1] += curvature_term(beta, unit, ratio, e, gap, w);
        }
      } else if (regime == Regime::kHot) {
        add_hot(query, beta, record, w, sums);
      } else {
        add_cold(query, record, sums);
      }
      if (++added % 32 == 0 && regime == Regime::kHot) sums.flush();
    }
    if (regime == Regime::kHot) sums.flush();
  }

  for (int i = 2; i < kAll - 2; ++i) sums.fields[i] += sums.lost[i];
  __syncthreads();  // the tile is read
  // All partial sums of a hot query are about one shift, for which any c gives the factor 1.
  merge_threads<kD, kEverything>(double(INFINITY), query_threads, latent_threads,
                                 reinterpret_cast<double*>(storage), sums.fields);
  if (latent_thread != 0 || !active) return;
  if (plan.num_splits > 1) {
    store_partial(task, blockIdx.y, b * problem.M + m, sums.fields);
  } else if (kThird) {
    finish_third(task, b, m, sums.fields[2], sums.fields[3]);
  } else {
    finish_narrow_second<T, kD>(task, b, m, regime, sums.fields);
  }
}

}  // namespace lebm::cuda
