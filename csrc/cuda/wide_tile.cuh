// A tile of pairs at D > 4: energies in registers, by differences, over slabs of dimensions.
//
//   e[i][j] = sum_d (y[q,d] - s[q,d] g[n,d])^2 + r[n],   q = 8 row + i,   n = kPerThread column + j
//
// The tile has 64 queries and 64 latents (32 in double). Its 128 threads stand in 8 rows of 16
// columns.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "load.cuh"
#include "splits.cuh"

namespace lebm::cuda {

constexpr int kTileQueries = 64, kRows = 8, kColumns = 16, kSlab = 16;
constexpr int kQueriesPerRow = kTileQueries / kRows;

// Rows of shared memory are padded against bank conflicts, by 16 bytes or more to keep the
// alignment.
constexpr int kPitch = kTileQueries + 4;

template <typename T>
constexpr int kPerThread = sizeof(T) == 4 ? 4 : 2;
template <typename T>
constexpr int kTileLatents = kColumns * kPerThread<T>;

template <typename T>
struct alignas(16) WideTile {
  T y[kSlab][kPitch], s[kSlab][kPitch], g[kSlab][kPitch];
  T p[kTileQueries * (kTileLatents<T> + 4)];  // p~ or G p of the pairs
  T weight[kTileLatents<T>];                  // log2 w; -inf: dropped, or outside the grid
  T energy[kTileLatents<T>];                  // r
  T factor[kTileQueries];                     // multiplies a query's sums so far
};

// The latents of a tile: `count` from `first` on, or a sample of `count` spread evenly over the
// grid.
struct LatentRange {
  int64_t first, count;
  bool sample;

  __device__ __forceinline__ int64_t at(int64_t i, int64_t N) const {
    return sample ? i * N / count : first + i;
  }
};

// Loads log2 w and r into the tile. The next barrier makes them visible to all threads.
template <typename T>
__device__ __forceinline__ void load_weights(const Problem<T>& p, const double* normaliser,
                                             int64_t b, const LatentRange& latents,
                                             WideTile<T>& tile) {
  for (int i = threadIdx.x; i < kTileLatents<T>; i += kThreads) {
    const bool inside = i < latents.count;
    const int64_t n = inside ? latents.at(i, p.N) : 0;
    const T weight = inside ? log2_weight(p, normaliser, b, n) : -infinity(T());
    tile.weight[i] = weight;
    tile.energy[i] =
        p.latent_energy.data && weight != -infinity(T()) ? load(p.latent_energy, b, n) : T(0);
  }
}

// Computes the energies. Those of dropped latents are without r and decoded, and are not used.
// Begins and ends with a barrier.
template <typename T, bool kHasScale>
__device__ __forceinline__ void tile_energies(const Problem<T>& p, int64_t b, int64_t first_query,
                                              const LatentRange& latents, WideTile<T>& tile,
                                              T (&e)[kQueriesPerRow][kPerThread<T>]) {
  constexpr int kPer = kPerThread<T>;
  const int row = int(threadIdx.x) / kColumns, column = int(threadIdx.x) % kColumns;
  __syncthreads();  // log2 w and r are written, the last tile is read
#pragma unroll
  for (int i = 0; i < kQueriesPerRow; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) e[i][j] = tile.energy[column * kPer + j];
  }
  for (int64_t start = 0; start < p.D; start += kSlab) {
    for (int i = threadIdx.x; i < kTileQueries * kSlab; i += kThreads) {
      const int d = i % kSlab, q = i / kSlab;
      const bool inside = first_query + q < p.M && start + d < p.D;
      tile.y[d][q] = inside ? load(p.y, b, first_query + q, start + d) : T(0);
      if (kHasScale) {
        tile.s[d][q] = inside && p.scale.data ? load(p.scale, b, first_query + q, start + d) : T(1);
      }
    }
    for (int i = threadIdx.x; i < kTileLatents<T> * kSlab; i += kThreads) {
      const int d = i % kSlab, j = i / kSlab;
      const bool inside = tile.weight[j] != -infinity(T()) && start + d < p.D;
      tile.g[d][j] = inside ? load(p.decoded, b, latents.at(j, p.N), start + d) : T(0);
    }
    __syncthreads();  // the slab is written
    T slab_sum[kQueriesPerRow][kPer];
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) slab_sum[i][j] = T(0);
    }
    const int dimensions = int(p.D - start < kSlab ? p.D - start : kSlab);
    for (int d = 0; d < dimensions; ++d) {
      T g[kPer];
#pragma unroll
      for (int j = 0; j < kPer; ++j) g[j] = tile.g[d][column * kPer + j];
#pragma unroll
      for (int i = 0; i < kQueriesPerRow; ++i) {
        const T y = tile.y[d][row * kQueriesPerRow + i];
        const T s = kHasScale ? tile.s[d][row * kQueriesPerRow + i] : T(1);
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const T x = kHasScale ? fused(-s, g[j], y) : y - g[j];
          slab_sum[i][j] = fused(x, x, slab_sum[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQueriesPerRow; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) e[i][j] += slab_sum[i][j];
    }
    __syncthreads();  // the slab is read
  }
}

}  // namespace lebm::cuda
