// The interface of operators and kernels: plain pointers, sizes and strides.
//
//   E[b,n] = sum_d (y[b,d] - scale[b,d] decoded[n,d])^2 + latent_energy[n]
//   F[b]   = -1/beta log sum_n w[n] exp(-beta E[b,n]),   w = softmax(log_weight), 1/N if absent
//
// Shapes, with a leading B independent grids: y, scale [B, M, D]; decoded [B, N, D]; beta [B, M];
// log_weight, latent_energy [B, N].
#pragma once

#include <cstdint>

namespace lebm {

// A tensor argument. Absent when data is null; broadcast dimensions have stride 0.
template <typename T>
struct View {
  const T* data = nullptr;
  int64_t stride[3] = {0, 0, 0};

  const T* at(int64_t i, int64_t j = 0) const { return data + i * stride[0] + j * stride[1]; }
};

template <typename T>
struct Problem {
  int64_t B, M, N, D;
  double tol;  // fraction of the sum that may be pruned; negative: only what rounding hides
  View<T> y, decoded, beta, scale, log_weight, latent_energy;
};

// The numbers of a query's state, in their order. At beta = inf the rest is log2 of the minima's
// total weight, up to an integer, in the units in which the row pass has its weights; it is 0
// elsewhere. L loses it to rounding if the weights are of very different sizes.
enum StateField { kStateShift, kStateLogNormaliser, kStateGap, kStateRest, kStateSize };

// Contiguous outputs; null where not wanted. state is [B, M, kStateSize].
template <typename T>
struct RowOutputs {
  T* free_energy;
  double* state;
  T* slope_y;
  T* slope_scale;
  double* slope_beta;  // in double: the square of an energy may leave the range of T
  T* mean;
  T *energy, *relative_entropy;
  int64_t* index;
};

// Further inputs of the column pass (contiguous), and its outputs; null where not wanted.
template <typename T>
struct ColumnArguments {
  const T* grad;        // [B, M]
  const double* state;  // [B, M, kStateSize]
  T* grad_decoded;
  T* grad_log_weight;
  T* grad_latent_energy;
};

// Energies E[A, N, C] that one already has, and their soft minima over n, [A, C]; with `largest`
// their soft maxima. Arrays are contiguous; a beta stride of 0 is one beta for all, a log-weight
// stride of 0 the same [N] for all.
template <typename T>
struct SoftProblem {
  int64_t A, N, C;
  bool largest;
  const T* energy;
  const T* beta;        // [A, C]
  const T* log_weight;  // [A, C, N], or null
  int64_t beta_stride, log_weight_stride;
};

}  // namespace lebm
