// The package's operators on the kernels of csrc/cuda, for SIMT_FLOAT or SIMT_DOUBLE.
// SIMT_DIMENSIONS lists the D <= 4 to compile (all by default); D > 4 is always compiled.
#include "columns.cuh"
#include "dimensions.cuh"
#include "rows.cuh"

#include "host.h"

#ifndef SIMT_DIMENSIONS
#define SIMT_DIMENSIONS 1, 2, 3, 4
#endif

namespace {

using Compiled = lebm::cuda::Dimensions<SIMT_DIMENSIONS>;

// numbers: B, M, N, D, then three strides for each tensor.
template <typename T>
lebm::Problem<T> problem(const int64_t* numbers, const T* y, const T* decoded, const T* beta,
                         const T* scale, const T* log_weight, const T* latent_energy) {
  auto view = [&](const T* data, int i) {
    const int64_t* stride = numbers + 4 + 3 * i;
    return lebm::View<T>{data, {stride[0], stride[1], stride[2]}};
  };
  return {numbers[0],
          numbers[1],
          numbers[2],
          numbers[3],
          -1.0,
          view(y, 0),
          view(decoded, 1),
          view(beta, 2),
          view(scale, 3),
          view(log_weight, 4),
          view(latent_energy, 5)};
}

// Without a workspace they only write the size that it needs.
template <typename T>
void rows(const lebm::Problem<T>& p, const lebm::RowOutputs<T>& out, int64_t multiprocessors,
          double* workspace, int64_t* size) {
  if (workspace) {
    lebm::cuda::launch_rows(p, out, workspace, int(multiprocessors), nullptr, Compiled{});
  } else {
    *size = lebm::cuda::rows_workspace(p, out, int(multiprocessors));
  }
}

template <typename T>
void columns(const lebm::Problem<T>& p, const lebm::ColumnArguments<T>& arguments,
             int64_t multiprocessors, double* workspace, int64_t* size) {
  if (workspace) {
    lebm::cuda::launch_columns(p, arguments, workspace, int(multiprocessors), nullptr, Compiled{});
  } else {
    *size = lebm::cuda::columns_workspace(p, arguments, int(multiprocessors));
  }
}

}  // namespace

#define LEBM_EXPORT(T, suffix)                                                                 \
  SIMT_EXPORT int rows_##suffix(                                                               \
      const int64_t* numbers, const T* y, const T* decoded, const T* beta, const T* scale,     \
      const T* log_weight, const T* latent_energy, int64_t multiprocessors, double* workspace, \
      int64_t* size, T* free_energy, double* state, T* slope_y, T* slope_scale,                \
      double* slope_beta, T* mean, T* energy, T* relative_entropy, int64_t* index) {           \
    return simt::guarded([&] {                                                                 \
      rows<T>(problem(numbers, y, decoded, beta, scale, log_weight, latent_energy),            \
              {free_energy, state, slope_y, slope_scale, slope_beta, mean, energy,             \
               relative_entropy, index},                                                       \
              multiprocessors, workspace, size);                                               \
    });                                                                                        \
  }                                                                                            \
  SIMT_EXPORT int columns_##suffix(                                                            \
      const int64_t* numbers, const T* y, const T* decoded, const T* beta, const T* scale,     \
      const T* log_weight, const T* latent_energy, int64_t multiprocessors, double* workspace, \
      int64_t* size, const T* grad, const double* state, T* grad_decoded, T* grad_log_weight,  \
      T* grad_latent_energy) {                                                                 \
    return simt::guarded([&] {                                                                 \
      columns<T>(problem(numbers, y, decoded, beta, scale, log_weight, latent_energy),         \
                 {grad, state, grad_decoded, grad_log_weight, grad_latent_energy},             \
                 multiprocessors, workspace, size);                                            \
    });                                                                                        \
  }

#ifdef SIMT_FLOAT
LEBM_EXPORT(float, f32)
#endif
#ifdef SIMT_DOUBLE
LEBM_EXPORT(double, f64)
#endif
