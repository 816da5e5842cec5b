// What a launch of the column pass is given: the gradients of the latent-side arguments,
//
//   p         = w exp(-beta (E - m) - L)     nothing is stored: rebuilt as the rows had it
//   grad_g[n] = -2 sum_b G p s (y - s g)
//   grad_r[n] = sum_b G p
//   grad_l[n] = sum_b G (w - p) / beta = sum_b G w (E - F) Psi(-beta (E - F))
//
//   Psi(x)    = (e^x - 1) / x
//
// G and the state of [B, M] queries. What the pair loops want of a query is put together once, in
// double, by prepare_kernel: in p = exp2(-c (E - m) + log2 w + K) f, K is whole, so that no
// rounding of -L moves a query's shares.
#pragma once

#include "finish.cuh"

namespace lebm::cuda {

// A query as the pair loops read it: kBasic numbers, kExtended with grad_l, then at D <= 4 y and s.
enum Record {
  kLeast,
  kRate,
  kWhole,
  kShare,
  kBasic,
  kGap = kBasic,
  kBeta,
  kInverse,
  kGrad,
  kExtended
};

template <typename T>
struct ColumnTask {
  Problem<T> problem;
  ColumnArguments<T> arguments;
  const double* normaliser;  // as in RowTask
  const T* records;          // [B M, width]
  int64_t width;
  int latent_threads;     // of a block's kThreads at D <= 4; the others take other queries
  int latents_a_thread;   // where many fit the registers
  int64_t splits;         // blocks that share a latent's queries
  int64_t split_queries;  // of each but the last
  double* partial;        // [splits, B N, fields]: grad_g, grad_r, grad_l before their factors
  int64_t fields;
};

// The rate of cold queries, whose p is a share among the minima.
template <typename T>
__device__ __forceinline__ T frozen() {
  return -infinity(T());
}

// records [B M, width]: `basic` numbers, and at D <= 4 y and, with_scale, s.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const Problem<T> problem, const T* grad, const double* state, int basic,
                   bool with_places, bool with_scale, int64_t width, T* records) {
  const int64_t query = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (query >= problem.B * problem.M) return;
  const int64_t b = query / problem.M, m = query % problem.M, D = problem.D;
  T* const record = records + query * width;
  const double beta = double(load(problem.beta, b, m)), G = double(grad[query]);
  const double m_exactly = state[3 * query];
  double log2_p = -fma(kLog2E, state[3 * query + 1], log2_latents(problem));
  const bool cold = is_cold<T>(beta);
  // A scaled query's reference was no attained energy, and is rounded here.
  const double m_rounded = double(T(m_exactly));
  if (m_exactly != m_rounded) log2_p += beta * kLog2E * (m_exactly - m_rounded);
  // At beta = inf the state has the rest of a normaliser whose whole L may have lost it to.
  const double whole = cold ? rint(log2_p + state[3 * query + 2]) : rint(log2_p);
  const double rest = cold ? -state[3 * query + 2] : log2_p - whole;
  record[kLeast] = T(m_rounded);
  // As the rows have it, which at D > 4 take all energies first. A steep query's rate is positive.
  const T rate = T(beta * kLog2E);
  const bool steep = with_places && is_steep(rate, record[kLeast]);
  record[kRate] = cold ? frozen<T>() : steep ? rate : -rate;
  record[kWhole] = T(whole);
  record[kShare] = T(G * exp2(rest));
  if (basic == kExtended) {
    record[kGap] = T(state[3 * query + 2]);
    record[kBeta] = T(beta);
    record[kInverse] = !cold && beta > (sizeof(T) == 4 ? 1e-30 : 1e-290) ? T(1 / beta) : T(0);
    record[kGrad] = T(G);
  }
  for (int64_t d = 0; d < D && with_places; ++d) {
    record[basic + d] = load(problem.y, b, m, d);
    if (with_scale) {
      record[basic + D + d] = problem.scale.data ? load(problem.scale, b, m, d) : T(1);
    }
  }
}

// One pair's part of grad_l; `share` is G p and e is E - m.
template <typename T>
__device__ __forceinline__ T weight_term(const T* query, T e, T w, T share) {
  if (query[kRate] == frozen<T>()) return T(0);
  const T above = e - query[kGap], tau = -query[kBeta] * above, inverse = query[kInverse];
  if (tau >= T(-0.5) && tau <= T(0.5)) {
    return query[kGrad] * w * (inverse > T(0) ? -power_minus_1(tau) * inverse : above);
  }
  return fused(query[kGrad], w, -share) * inverse;
}

// Writes a latent's sums. fields: grad_g, grad_r, grad_l before their factors.
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

// Adds the splits of every field up, in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_columns_kernel(const __grid_constant__ ColumnTask<T> task) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t count = task.problem.B * task.problem.N * task.fields;
  if (i >= count) return;
  double sum = 0;
  for (int64_t split = 0; split < task.splits; ++split) sum += task.partial[split * count + i];
  store_column(task, i / task.fields, i % task.fields, sum);
}

}  // namespace lebm::cuda
