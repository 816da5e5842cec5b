// The column pass at D > 4: tile by tile, the latents of a thread block with the queries of its
// split.
//
//   grad_g[n] = -2 sum_b G p s (y - s g),   grad_r[n] = sum_b G p,   grad_l[n]: see column_task.cuh
//
//   y, scale [B, M, D]; decoded [B, N, D]; records [B M, width] -> partial [num_splits, B N, D + 2]
//
// The energies of a tile (wide_tile.cuh) become G p in shared memory. The sums for each dimension
// multiply G p by differences, and are added in double to `partial`, whose elements have one thread
// each.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "column_task.cuh"
#include "device.cuh"
#include "load.cuh"
#include "splits.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

template <typename T>
constexpr int kLatentsPerRow = kTileLatents<T> / kRows;
template <typename T>
constexpr int kPairPitch = kTileLatents<T> + 4;

template <typename T>
__device__ __forceinline__ T grad_times_p(const T* query, T energy, T weight) {
  const T whole = weight + query[kWhole];
  if (query[kRate] == cold_rate<T>()) {
    if (energy != energy) return energy;
    return energy == query[kShift] ? power(whole) * query[kFactor] : T(0);
  }
  return power(fused(query[kRate], energy - query[kShift], whole)) * query[kFactor];
}

// Adds the sums over the tile's queries of G p s (y - s g) to those in memory.
template <typename T, bool kHasScale>
__device__ __forceinline__ void add_grad_decoded(const ColumnTask<T>& task, int64_t b,
                                                 int64_t first_query, const LatentRange& latents,
                                                 const WideTile<T>& tile, bool is_first) {
  const Problem<T>& p = task.problem;
  constexpr int kPer = kLatentsPerRow<T>;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const int queries = int(p.M - first_query < kTileQueries ? p.M - first_query : kTileQueries);
  for (int64_t d = column; d < p.D; d += kColumns) {
    T g[kPer], sums[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int n = row * kPer + j;
      g[j] = n < latents.count && tile.weight[n] != -infinity(T())
                 ? load(p.decoded, b, latents.first + n, d)
                 : T(0);
      sums[j] = T(0);
    }
    for (int q = 0; q < queries; ++q) {
      const T y = load(p.y, b, first_query + q, d);
      const T s = kHasScale ? load(p.scale, b, first_query + q, d) : T(1);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const T grad_p = tile.p[q * kPairPitch<T> + row * kPer + j];
        sums[j] = kHasScale ? fused(grad_p * s, fused(-s, g[j], y), sums[j])
                            : fused(grad_p, y - g[j], sums[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int n = row * kPer + j;
      if (n >= latents.count) continue;
      const int64_t latent = blockIdx.y * p.B * p.N + b * p.N + latents.first + n;
      double* const to = task.partial + latent * task.fields + d;
      *to = is_first ? double(sums[j]) : *to + double(sums[j]);
    }
  }
}

template <typename T, bool kHasScale>
__global__ void __launch_bounds__(kThreads)
    wide_columns_kernel(const __grid_constant__ ColumnTask<T> task) {
  LEBM_SHARED(WideTile<T>, tile, [1]);
  constexpr int kPer = kPerThread<T>;
  const Problem<T>& p = task.problem;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  const int64_t blocks = (p.N + kTileLatents<T> - 1) / kTileLatents<T>;
  const int64_t b = blockIdx.x / blocks, first = blockIdx.x % blocks * kTileLatents<T>;
  const LatentRange latents = {first, p.N - first < kTileLatents<T> ? p.N - first : kTileLatents<T>,
                               false};
  load_weights(p, task.normaliser, b, latents, tile[0]);
  const bool wants_weights = task.arguments.grad_log_weight;
  double by_energy[kPer], by_weight[kPer];
#pragma unroll
  for (int j = 0; j < kPer; ++j) by_energy[j] = by_weight[j] = 0;

  const int64_t begin = blockIdx.y * task.split_size;
  const int64_t end = begin + task.split_size < p.M ? begin + task.split_size : p.M;
  for (int64_t start = begin; start < end; start += kTileQueries) {
    T e[kQueriesPerRow][kPer];
    tile_energies<T, kHasScale>(p, b, start, latents, tile[0], e);
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
      const int64_t q = start + row * kQueriesPerRow + i;
      if (q >= end) continue;
      const T* query = task.records + (b * p.M + q) * task.width;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int n = column * kPer + j;
        const T weight = tile[0].weight[n];
        const bool used = weight != -infinity(T());
        const T grad_p = used ? grad_times_p(query, e[i][j], weight) : T(0);
        tile[0].p[(row * kQueriesPerRow + i) * kPairPitch<T> + n] = grad_p;
        by_energy[j] += double(grad_p);
        if (wants_weights && used) {
          by_weight[j] +=
              double(weight_term(query, e[i][j] - query[kShift], power(weight), grad_p));
        }
      }
    }
    __syncthreads();  // G p is written
    if (task.arguments.grad_decoded) {
      add_grad_decoded<T, kHasScale>(task, b, start, latents, tile[0], start == begin);
    }
  }

  __syncthreads();                                               // G p is read
  double* const scratch = reinterpret_cast<double*>(tile[0].p);  // [2][kRows][kTileLatents]
  constexpr int kHalf = kRows * kTileLatents<T>;
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const int at = row * kTileLatents<T> + column * kPer + j;
    scratch[at] = by_energy[j];
    scratch[kHalf + at] = by_weight[j];
  }
  __syncthreads();  // the rows' sums are written
  for (int n = threadIdx.x; n < latents.count; n += kThreads) {
    double sums[2] = {0, 0};
    for (int i = 0; i < kRows; ++i) {
      sums[0] += scratch[i * kTileLatents<T> + n];
      sums[1] += scratch[kHalf + i * kTileLatents<T> + n];
    }
    double* const to =
        task.partial + (blockIdx.y * p.B * p.N + b * p.N + first + n) * task.fields + p.D;
    to[0] = sums[0];
    to[1] = sums[1];
  }
}

}  // namespace lebm::cuda
