// The gradients of a block of latents from its sums: grad_decoded [block][D], grad_log_weight and
// grad_latent_energy [block].
#pragma once

#include "../../problem.h"
#include "task.h"

LEBM_BEGIN_TARGET

// factor sums [D][block] to out [block][D].
template <typename T, int kD>
static void write_gradient(const double* __restrict sums, double factor, int64_t block,
                           T* __restrict out) {
  for (int64_t j = 0; j < block; ++j)
    for (int d = 0; d < kD; ++d) out[j * kD + d] = T(factor * sums[d * block + j]);
}

template <typename T>
static void write_block(const Problem<T>& p, const ColumnArguments<T>& out, int64_t b,
                        const Grid<T>& grid, const Block<T>& block, const ColumnSums<T>& sums,
                        double pulled, double unit, bool poisoned) {
  if (grid.plain && out.grad_decoded && !poisoned && grid.whole[block.first / grid.block]) {
    T* gradient = out.grad_decoded + (b * p.N + block.first) * p.D;
    switch (p.D) {
      case 1:
        return write_gradient<T, 1>(sums.g_all, -2 * unit, grid.block, gradient);
      case 2:
        return write_gradient<T, 2>(sums.g_all, -2 * unit, grid.block, gradient);
      case 3:
        return write_gradient<T, 3>(sums.g_all, -2 * unit, grid.block, gradient);
      default:
        return write_gradient<T, 4>(sums.g_all, -2 * unit, grid.block, gradient);
    }
  }
  const double total = grid.total;
  for (int64_t j = 0; j < grid.block && block.first + j < p.N; ++j) {
    const int64_t n = grid.order ? grid.order[block.first + j] : block.first + j;
    const int64_t at = b * p.N + n;
    const T nan = T(__builtin_nan(""));
    const bool absent = block.r[j] == kAbsent<T>;
    for (int64_t d = 0; out.grad_decoded && d < p.D; ++d)
      out.grad_decoded[at * p.D + d] = poisoned ? nan
                                       : absent ? T(0)
                                                : T(-2 * unit * sums.g_all[d * grid.block + j]);
    if (out.grad_latent_energy)
      out.grad_latent_energy[at] = poisoned ? nan : absent ? T(0) : T(unit * sums.r_all[j]);
    if (out.grad_log_weight) {
      // A latent with a log-weight of -inf has no weight; one of infinite energy has weight, and p
      // = 0.
      const double of_weight =
          block.w[j] == 0 ? 0 : block.w[j] / total * (sums.l_small[j] + pulled);
      out.grad_log_weight[at] =
          poisoned ? nan : T(unit * ((absent ? 0 : sums.l_all[j]) + of_weight));
    }
  }
}

LEBM_END_TARGET
