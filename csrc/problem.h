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

// Contiguous outputs; null where not wanted. state is [B, M, 3]: the shift m, the log_normaliser L
// and the gap F - m. At beta = inf the gap is 0, and the CPU stores another number in its place:
// the normaliser log2 sum_n w / (largest w) over the minima, up to an integer. L has lost it to
// rounding if the weights are of very different sizes.
template <typename T>
struct RowOutputs {
  T* free_energy;
  double* state;
  T* slope_y;
  T* slope_scale;
  T* slope_beta;
  T* mean;
  int64_t* index;
};

// Further inputs of the column pass (contiguous), and its outputs; null where not wanted.
template <typename T>
struct ColumnArguments {
  const T* grad;        // [B, M]
  const double* state;  // [B, M, 3]
  T* grad_decoded;
  T* grad_log_weight;
  T* grad_latent_energy;
};

}  // namespace lebm
