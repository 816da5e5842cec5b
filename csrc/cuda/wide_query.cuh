// The queries of the row passes at D > 4: what their pairs need, their sums, and their shifts.
//
//   p~ = exp2(-c (E - m) + log2 w + a)
//
// Lane l of a warp keeps query l / 4 of the warp's 8, so that four lanes have the same. The shift
// (m, a) is the energy of the query's best latent so far. It is replaced when a tile has a latent
// that is better by 20 bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "load.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

constexpr double kLag = 20;  // bits by which a latent may be better than the shift

constexpr unsigned kAllLanes = 0xffffffffu;

constexpr int kLanesPerQuery = kLanes / kOwn;

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

// The best shift of a tile's latents for one query, the same in all lanes.
template <typename T>
__device__ __forceinline__ void best_of_tile(T minus_c, const T (&e)[kPer<T>],
                                             const T (&weights)[kPer<T>], T& energy, T& weight) {
  energy = infinity(T());
  weight = -infinity(T());
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    if (is_better(minus_c, e[j], weights[j], energy, weight)) {
      energy = e[j];
      weight = weights[j];
    }
  }
  for (int delta = kLanes / 2; delta > 0; delta /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, energy, delta);
    const T other_weight = __shfl_xor_sync(kAllLanes, weight, delta);
    if (is_better(minus_c, other, other_weight, energy, weight)) {
      energy = other;
      weight = other_weight;
    }
  }
  // Lanes may hold different ones of two that are equally good.
  energy = __shfl_sync(kAllLanes, energy, 0);
  weight = __shfl_sync(kAllLanes, weight, 0);
}

// What the pairs of a query need.
template <typename T>
struct WideShift {
  Regime regime;
  T m, a, minus_c, beta, gap, unit;
};

// A query and its sums.
template <typename T>
struct WideQuery : WideShift<T> {
  double mass, energy;
  double extra;  // second pass: sum w (exp(-beta (E - m)) - 1); third pass: K sum w
  T least;
  int64_t index;
};

// The shift of the warp's query i, in all lanes.
template <typename T, RowPass kPass>
__device__ __forceinline__ WideShift<T> shift_of(const WideShift<T>& own, int i) {
  auto of = [&](auto x) { return __shfl_sync(kAllLanes, x, i * kLanesPerQuery); };
  WideShift<T> q = {Regime::kWarm, of(own.m), of(own.a), of(own.minus_c), T(0), T(0), T(1)};
  if (kPass == RowPass::kFirst) return q;
  q.regime = Regime(of(int(own.regime)));
  q.beta = of(own.beta);
  if (kPass == RowPass::kThird) {
    q.gap = of(own.gap);
    q.unit = of(own.unit);
  }
  return q;
}

// Returns p~ of a pair of the second or third pass, and adds the pair to `extra` and `least`.
template <typename T, RowPass kPass>
__device__ __forceinline__ T later_pair_of(const WideShift<T>& q, T e, T weight, double& extra,
                                           T& least) {
  if (q.regime == Regime::kCold) {
    if (e != e || weight != weight) return T(not_a_number());
    return e == q.m && e < infinity(T()) ? power(weight + q.a) : T(0);
  }
  const T w = power(weight), excess = e - q.m;
  if (!(w > T(0))) return T(0);
  if (kPass == RowPass::kThird) {
    const T ratio = q.beta > T(0) ? q.unit / q.beta : T(0);
    extra += double(curvature_term(q.beta, q.unit, ratio, excess, q.gap, w));
  } else {
    const T p_minus_1 = excess < infinity(T()) ? power_minus_1(-q.beta * excess) : T(-1);
    extra += double(w * p_minus_1);
    least = lesser(least, excess < T(0) ? excess : -excess);
  }
  return w;
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

// p~ of a query's pairs in the first pass is exp2 of these.
template <typename T>
__device__ __forceinline__ void exponents_of(const WideShift<T>& q, const T (&e)[kPer<T>],
                                             const T (&weights)[kPer<T>], T (&exponents)[kPer<T>]) {
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    exponents[j] = fused(q.minus_c, e[j] - q.m, weights[j] + q.a);
  }
}

// Updates the shift of the warp's query i by the best latent of the tile. `factor` is that of a
// lane's own query.
template <typename T, RowPass kPass>
__device__ __forceinline__ void find_shift(WideQuery<T>& own, int i, const T (&e)[kPer<T>],
                                           const T (&weights)[kPer<T>], WideShift<T>& q,
                                           T& factor) {
  T energy, weight;
  best_of_tile(q.regime == Regime::kCold ? -infinity(T()) : q.minus_c, e, weights, energy, weight);
  if (lane_of_thread() / kLanesPerQuery == i) factor = update_shift(own, energy, weight);
  q = shift_of<T, kPass>(own, i);
}

// Computes p~ of the warp's query i in the first pass, after updating its shift if a latent of the
// tile is much better.
template <typename T>
__device__ __forceinline__ void first_pairs_of(WideQuery<T>& own, int i, const T (&e)[kPer<T>],
                                               const T (&weights)[kPer<T>], WideShift<T>& q,
                                               T& factor, T (&pairs)[kPer<T>]) {
  exponents_of(q, e, weights, pairs);
  T most = pairs[0];
#pragma unroll
  for (int j = 1; j < kPer<T>; ++j) most = greater(most, pairs[j]);
  if (__any_sync(kAllLanes, most > T(kLag) || q.a == infinity(T()))) {
    find_shift<T, RowPass::kFirst>(own, i, e, weights, q, factor);
    exponents_of(q, e, weights, pairs);
    if (q.a == infinity(T())) {  // no energy is finite
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) {
        pairs[j] = e[j] != e[j] || weights[j] != weights[j] ? T(not_a_number()) : -infinity(T());
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    pairs[j] = weights[j] == -infinity(T()) ? T(0) : power(pairs[j]);
  }
}

// A query before the pass. It has no shift yet.
template <typename T, RowPass kPass>
__device__ __forceinline__ WideQuery<T> wide_query(const RowTask<T>& task, int64_t b, int64_t m) {
  WideQuery<T> q = {
      {Regime::kInvalid, T(0), infinity(T()), T(0), T(0), T(0), T(1)}, 0, 0, 0, infinity(T()), 0};
  if (m >= task.problem.M) return q;
  q.beta = load(task.problem.beta, b, m);
  if (kPass == RowPass::kFirst) {
    q.regime = Regime::kWarm;
    const double beta = double(q.beta);
    q.minus_c = beta >= 0 && !is_cold<T>(beta) ? -T(beta * kLog2E) : T(0);
    return q;
  }
  q.regime = later_regime(task, b, m, kPass == RowPass::kThird);
  if (q.regime == Regime::kHot) q.a = T(0);
  if (kPass == RowPass::kThird) {
    const double* state = task.out.state + kStateSize * (b * task.problem.M + m);
    q.m = T(state[kStateShift]);
    q.gap = T(state[kStateGap]);
    q.unit = unit_of(task, b, m);
  }
  return q;
}

// The first shift: the best latent of a sample.
template <typename T, RowPass kPass>
__device__ __forceinline__ void sample_shift(const RowTask<T>& task, int64_t query,
                                             const WideTile<T, false>& tile,
                                             const T (&e)[kOwn][kPer<T>], WideQuery<T>& own) {
  T weights[kPer<T>];
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) weights[j] = tile.weight[other_of_lane<T>(j)];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const WideShift<T> q = shift_of<T, kPass>(own, i);
    T energy, weight;
    best_of_tile(q.regime == Regime::kWarm ? q.minus_c : -infinity(T()), e[i], weights, energy,
                 weight);
    if (lane_of_thread() / kLanesPerQuery != i) continue;
    if (kPass == RowPass::kFirst) {
      update_shift(own, energy, weight);
    } else if (own.regime == Regime::kHot) {
      // If the sample has no finite energy, the shift of the first pass stays.
      own.m = energy < infinity(T()) ? energy : T(task.out.state[kStateSize * query + kStateShift]);
    }
  }
}

}  // namespace lebm::cuda
