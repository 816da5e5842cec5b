// The arguments of a kernel launch of the column pass, which computes the gradients of the
// latent-side arguments: decoded g, latent_energy r and log_weight l.
//
//   p         = w exp(-beta (E - m) - L)     recomputed for each pair, as in the row pass
//   grad_g[n] = -2 sum_b G p s (y - s g)
//   grad_r[n] = sum_b G p
//   grad_l[n] = sum_b G (w - p) / beta = sum_b G w (E - F) Psi(-beta (E - F))
//
//   Psi(x)    = (e^x - 1) / x
//
// G [B, M] is the incoming gradient of F; state [B, M, 4] = (m, L, F - m, rest) comes from the row
// pass. prepare_kernel computes once, in double, what the pair loop needs of a query. There p =
// exp2(-c (E - m) + log2 w + K) f, where K is a whole number and f a factor of order 1. A rounding
// of -L in the exponent would change all posterior weights of a query; K is exact.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "load.cuh"
#include "splits.cuh"

namespace lebm::cuda {

// A query as the pair loop reads it: m, -c, K, G f. With grad_l also F - m, beta, 1 / beta and G.
// At D <= 4 y and the scale follow.
enum Record {
  kShift,
  kRate,
  kWhole,
  kFactor,
  kBasic,
  kGap = kBasic,
  kBeta,
  kInverseBeta,
  kGrad,
  kExtended
};

template <typename T>
struct ColumnTask {
  Problem<T> problem;
  ColumnArguments<T> arguments;
  const double* normaliser;  // [B, 2], see normalise.cuh; null without log-weights
  const T* records;          // [B M, width]
  int64_t width;
  int latent_threads;      // of the kThreads of a thread block at D <= 4; others take other queries
  int latents_per_thread;  // more than 1 where many fit into the registers
  int64_t num_splits;      // of a latent's queries, over thread blocks
  int64_t split_size;      // queries of each split but the last
  double* partial;         // [num_splits, B N, fields]: sums for grad_g, grad_r, grad_l
  int64_t fields;
};

// The rate that marks a cold query, whose posterior weight lies on the latents of least energy.
template <typename T>
__device__ __forceinline__ T cold_rate() {
  return -infinity(T());
}

// Writes records [B M, width]: `basic` numbers, then with_point y and, with_scale, the scale.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const Problem<T> problem, const T* grad, const double* state, int basic,
                   bool with_point, bool with_scale, int64_t width, T* records) {
  const int64_t query = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (query >= problem.B * problem.M) return;
  const int64_t b = query / problem.M, m = query % problem.M, D = problem.D;
  T* const record = records + query * width;
  const double beta = double(load(problem.beta, b, m)), G = double(grad[query]);
  const double* const own = state + kStateSize * query;
  const double m_stored = own[kStateShift];
  double log2_p = -fma(kLog2E, own[kStateLogNormaliser], log2_total_weight(problem));
  const bool cold = is_cold<T>(beta);
  // The shift of a premultiplied query is not the energy of a latent in T. It is rounded here.
  const double m_rounded = double(T(m_stored));
  if (m_stored != m_rounded) log2_p += beta * kLog2E * (m_stored - m_rounded);
  // At beta = inf the rest is the fractional part of the normaliser, which L may have lost to
  // rounding.
  const double whole = cold ? rint(log2_p + own[kStateRest]) : rint(log2_p);
  const double rest = cold ? -own[kStateRest] : log2_p - whole;
  record[kShift] = T(m_rounded);
  // A positive rate marks a steep query. At D > 4 no query is marked: the row pass computes E first
  // for every query.
  const T rate = T(beta * kLog2E);
  const bool steep = with_point && is_steep(rate, record[kShift]);
  record[kRate] = cold ? cold_rate<T>() : steep ? rate : -rate;
  record[kWhole] = T(whole);
  record[kFactor] = T(G * exp2(rest));
  if (basic == kExtended) {
    record[kGap] = T(own[kStateGap]);
    record[kBeta] = T(beta);
    record[kInverseBeta] = !cold && beta > (sizeof(T) == 4 ? 1e-30 : 1e-290) ? T(1 / beta) : T(0);
    record[kGrad] = T(G);
  }
  for (int64_t d = 0; d < D && with_point; ++d) {
    record[basic + d] = load(problem.y, b, m, d);
    if (with_scale) {
      record[basic + D + d] = problem.scale.data ? load(problem.scale, b, m, d) : T(1);
    }
  }
}

// A pair's term of grad_l; grad_p is G p, and e is E - m.
template <typename T>
__device__ __forceinline__ T weight_term(const T* query, T e, T w, T grad_p) {
  if (query[kRate] == cold_rate<T>()) return T(0);
  const T above = e - query[kGap], tau = -query[kBeta] * above, inverse_beta = query[kInverseBeta];
  if (tau >= T(-0.5) && tau <= T(0.5)) {
    return query[kGrad] * w * (inverse_beta > T(0) ? -power_minus_1(tau) * inverse_beta : above);
  }
  return fused(query[kGrad], w, -grad_p) * inverse_beta;
}

// Writes a gradient of a latent from its sum: field 0 to D - 1 is grad_g, D grad_r, D + 1 grad_l.
template <typename T>
__device__ __forceinline__ void store_column(const ColumnTask<T>& task, int64_t latent,
                                             int64_t field, double sum) {
  const int64_t D = task.problem.D;
  const ColumnArguments<T>& out = task.arguments;
  if (field < D) {
    if (out.grad_decoded) out.grad_decoded[latent * D + field] = T(-2 * sum);
  } else if (field == D) {
    if (out.grad_latent_energy) out.grad_latent_energy[latent] = T(sum);
  } else {
    if (out.grad_log_weight) out.grad_log_weight[latent] = T(sum);
  }
}

// Merges the splits of every sum, in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_columns_kernel(const __grid_constant__ ColumnTask<T> task) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t count = task.problem.B * task.problem.N * task.fields;
  if (i >= count) return;
  double sum = 0;
  for (int64_t split = 0; split < task.num_splits; ++split) sum += task.partial[split * count + i];
  store_column(task, i / task.fields, i % task.fields, sum);
}

}  // namespace lebm::cuda
