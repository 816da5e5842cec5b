// Reads the arguments of a problem, whatever their strides.
//
//   y, scale [B, M, D]; decoded [B, N, D]; beta [B, M]; log_weight, latent_energy [B, N]
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"

namespace lebm::cuda {

template <typename T>
__device__ __forceinline__ T load(const View<T>& x, int64_t b, int64_t i) {
  return x.data[b * x.stride[0] + i * x.stride[1]];
}

template <typename T>
__device__ __forceinline__ T load(const View<T>& x, int64_t b, int64_t i, int64_t d) {
  return x.data[b * x.stride[0] + i * x.stride[1] + d * x.stride[2]];
}

// log2 w of a latent. Without log-weights it is 0, and log2_total_weight corrects the sums.
// normaliser [B, 2] is described in normalise.cuh.
template <typename T>
__device__ __forceinline__ T log2_weight(const Problem<T>& problem, const double* normaliser,
                                         int64_t b, int64_t n) {
  if (!problem.log_weight.data) return T(0);
  const double l = double(load(problem.log_weight, b, n));
  return T((l - normaliser[2 * b] - normaliser[2 * b + 1]) * kLog2E);
}

// log2 of the sum of the weights that log2_weight gives: a mass is divided by that sum.
template <typename T>
__device__ double log2_total_weight(const Problem<T>& problem) {
  return problem.log_weight.data ? 0.0 : log2(double(problem.N));
}

// The rate c = beta log2(e) of a warm query in the first row pass; 0 for the other regimes.
template <typename T>
__device__ double rate_at(const Problem<T>& problem, int64_t b, int64_t m) {
  const double beta = double(load(problem.beta, b, m));
  return beta >= 0 && !is_cold<T>(beta) ? double(T(beta * kLog2E)) : 0.0;
}

}  // namespace lebm::cuda
