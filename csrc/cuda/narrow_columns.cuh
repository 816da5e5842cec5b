// The column pass at D <= 4: latents in registers, queries in shared memory.
//
//   grad_g[n] = -2 sum_b G p s (y - s g),   grad_r[n] = sum_b G p,   grad_l[n]: see column_task.cuh
//
//   records [B M, width] -> grad_g [B, N, D]; grad_r, grad_l [B, N]
//
// The threads of a thread block are latent threads times query threads. A chunk of queries is
// summed in T, the chunks of a tile in T, and the tiles in double.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "column_task.cuh"
#include "device.cuh"
#include "load.cuh"
#include "narrow_tile.cuh"
#include "splits.cuh"

namespace lebm::cuda {

template <int kD, bool kHasScale, bool kHasWeightGrad>
struct ColumnLayout {
  static constexpr int kPointAt = kHasWeightGrad ? int(kExtended) : int(kBasic);
  static constexpr int kWidth = (kPointAt + (kHasScale ? 2 : 1) * kD + 3) / 4 * 4;
};

constexpr int kQueryTile = 256;  // queries in shared memory

template <typename T, int kD, bool kHasExtras, bool kHasWeightGrad>
struct Latent {
  static constexpr int kCount = kD + (kHasExtras ? 1 : 0) + (kHasWeightGrad ? 1 : 0);
  T g[kD], log2_w, w, r;
  T chunk[kCount], tile[kCount];
  double total[kCount], lost[kCount];
};

// Whether a query is cold or steep, and the plain exponent is wrong for it.
template <typename T>
__device__ __forceinline__ bool needs_care(T rate) {
  return rate > T(0) || rate == cold_rate<T>();
}

// Adds one query to a latent's sums. With kCareful the query may need care.
template <typename T, int kD, bool kHasScale, bool kHasExtras, bool kHasWeightGrad, bool kCareful>
__device__ __forceinline__ void add(const T* query,
                                    Latent<T, kD, kHasExtras, kHasWeightGrad>& latent) {
  const T* y = query + ColumnLayout<kD, kHasScale, kHasWeightGrad>::kPointAt;
  const T* s = y + kD;
  const T start = kHasExtras ? latent.r - query[kShift] : -query[kShift];
  T x[kD], e = start;
  for (int d = 0; d < kD; ++d) {
    x[d] = kHasScale ? fused(-s[kHasScale ? d : 0], latent.g[d], y[d]) : y[d] - latent.g[d];
    e = fused(x[d], x[d], e);
  }
  const T whole = kHasExtras ? latent.log2_w + query[kWhole] : query[kWhole];
  T p = T(0);
  if (kCareful && needs_care(query[kRate])) {
    T energy = kHasExtras ? latent.r : T(0);
    for (int d = 0; d < kD; ++d) energy = fused(x[d], x[d], energy);
    e = energy - query[kShift];
    if (query[kRate] > T(0)) {
      p = power(fused(-query[kRate], e, whole));
    } else if (energy == query[kShift] || energy != energy) {
      p = power(whole) + (energy - energy);
    }
  } else {
    p = power(fused(query[kRate], e, whole));
  }
  const T grad_p = p * query[kFactor];
  for (int d = 0; d < kD; ++d) {
    const T grad_p_s = kHasScale ? grad_p * s[kHasScale ? d : 0] : grad_p;
    latent.chunk[d] = fused(grad_p_s, x[d], latent.chunk[d]);
  }
  if (kHasExtras) latent.chunk[kHasExtras ? kD : 0] += grad_p;
  if (kHasWeightGrad) {
    latent.chunk[kHasWeightGrad ? kD + 1 : 0] += weight_term(query, e, latent.w, grad_p);
  }
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, bool kHasWeightGrad, int kLatents,
          bool kCareful>
__device__ __forceinline__ void add_queries(
    const T* tile, int first, int count, int step,
    Latent<T, kD, kHasExtras, kHasWeightGrad> (&latents)[kLatents]) {
  using L = Latent<T, kD, kHasExtras, kHasWeightGrad>;
  constexpr int kWidth = ColumnLayout<kD, kHasScale, kHasWeightGrad>::kWidth;
  using Query = Packed<T, kWidth>;
  const Query* queries = reinterpret_cast<const Query*>(tile);
  auto add_query = [&](const Query query) {
#pragma unroll
    for (int j = 0; j < kLatents; ++j) {
      add<T, kD, kHasScale, kHasExtras, kHasWeightGrad, kCareful>(query.at, latents[j]);
    }
  };
  for (int start = first; start < count; start += kChunk * step) {
    // The loop over a whole chunk has a constant length, for the compiler to unroll.
    if (!kCareful && !kHasWeightGrad && count - start > (kChunk - 1) * step) {
#pragma unroll 2
      for (int i = 0; i < kChunk; ++i) add_query(queries[start + i * step]);
    } else {
      const int end = min(start + kChunk * step, count);
#pragma unroll 1
      for (int i = start; i < end; i += step) add_query(queries[i]);
    }
#pragma unroll
    for (int j = 0; j < kLatents; ++j) {
      for (int k = 0; k < L::kCount; ++k) {
        latents[j].tile[k] += latents[j].chunk[k];
        latents[j].chunk[k] = T(0);
      }
    }
  }
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, bool kHasWeightGrad, int kLatents>
__global__ void __launch_bounds__(kThreads)
    narrow_columns_kernel(const __grid_constant__ ColumnTask<T> task) {
  using L = Latent<T, kD, kHasExtras, kHasWeightGrad>;
  constexpr int kWidth = ColumnLayout<kD, kHasScale, kHasWeightGrad>::kWidth;
  constexpr int kNumbers = kQueryTile * kWidth;
  constexpr int kDoubles = kNumbers * int(sizeof(T)) / 8, kScratch = L::kCount * kThreads;
  LEBM_SHARED(double2, storage, [((kDoubles > kScratch ? kDoubles : kScratch) + 1) / 2]);
  T* const tile = reinterpret_cast<T*>(storage);
  double* const scratch = reinterpret_cast<double*>(storage);
  const Problem<T>& p = task.problem;

  // If a thread has several latents, every thread has some.
  const int latent_threads = kLatents > 1 ? kThreads : task.latent_threads;
  const int latent_thread = int(threadIdx.x) % latent_threads;
  const int query_thread = int(threadIdx.x) / latent_threads;
  const int query_threads = kThreads / latent_threads;
  const int64_t latents_per_block = int64_t(latent_threads) * kLatents;
  const int64_t blocks = (p.N + latents_per_block - 1) / latents_per_block;
  const int64_t b = blockIdx.x / blocks;
  const int64_t first_latent = blockIdx.x % blocks * latents_per_block + latent_thread;

  L latents[kLatents];
#pragma unroll
  for (int j = 0; j < kLatents; ++j) {
    const int64_t n = first_latent + int64_t(j) * latent_threads;
    const bool inside = n < p.N;
    T weight = T(0);
    if (kHasExtras && inside) weight = log2_weight(p, task.normaliser, b, n);
    const bool used = inside && weight != -infinity(T());
    for (int d = 0; d < kD; ++d) latents[j].g[d] = used ? load(p.decoded, b, n, d) : T(0);
    latents[j].log2_w = weight;
    latents[j].r = kHasExtras && used && p.latent_energy.data ? load(p.latent_energy, b, n) : T(0);
    // Only grad_l reads w, and it is not computed without log-weights.
    latents[j].w = kHasWeightGrad ? power(weight) : T(0);
    for (int k = 0; k < L::kCount; ++k) {
      latents[j].chunk[k] = latents[j].tile[k] = T(0);
      latents[j].total[k] = latents[j].lost[k] = 0;
    }
  }

  const int64_t begin = blockIdx.y * task.split_size;
  const int64_t end = begin + task.split_size < p.M ? begin + task.split_size : p.M;
  for (int64_t start = begin; start < end; start += kQueryTile) {
    const int count = int(end - start < kQueryTile ? end - start : kQueryTile);
    __syncthreads();  // the last tile is read
    const T* from = task.records + (b * p.M + start) * kWidth;
    bool careful = false;
    for (int i = threadIdx.x; i < count * kWidth; i += kThreads) {
      tile[i] = from[i];
      careful = careful || (i % kWidth == kRate && needs_care(tile[i]));
    }
    if (__syncthreads_or(careful)) {  // the tile is written
      add_queries<T, kD, kHasScale, kHasExtras, kHasWeightGrad, kLatents, true>(
          tile, query_thread, count, query_threads, latents);
    } else {
      add_queries<T, kD, kHasScale, kHasExtras, kHasWeightGrad, kLatents, false>(
          tile, query_thread, count, query_threads, latents);
    }
#pragma unroll
    for (int j = 0; j < kLatents; ++j) {
      for (int k = 0; k < L::kCount; ++k) {
        if (sizeof(T) == 8) {
          add_exactly(latents[j].total[k], latents[j].lost[k], double(latents[j].tile[k]));
        } else {
          latents[j].total[k] += double(latents[j].tile[k]);
        }
        latents[j].tile[k] = T(0);
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kLatents; ++j) {
    for (int k = 0; k < L::kCount; ++k) {
      // The rounding error of an infinite sum is NaN.
      if (is_finite(latents[j].lost[k])) latents[j].total[k] += latents[j].lost[k];
    }
    for (int half = query_threads / 2; half > 0; half /= 2) {
      __syncthreads();  // the tile, or what was written before, is read
      for (int k = 0; k < L::kCount; ++k) {
        scratch[k * kThreads + threadIdx.x] = latents[j].total[k];
      }
      __syncthreads();  // all sums are written
      for (int k = 0; k < L::kCount && query_thread < half; ++k) {
        latents[j].total[k] += scratch[k * kThreads + threadIdx.x + half * latent_threads];
      }
    }
    const int64_t n = first_latent + int64_t(j) * latent_threads;
    if (query_thread != 0 || n >= p.N) continue;
    const int64_t latent = b * p.N + n;
    for (int k = 0; k < L::kCount; ++k) {
      if (task.num_splits == 1) {
        store_column(task, latent, k, latents[j].total[k]);
      } else {
        task.partial[(blockIdx.y * p.B * p.N + latent) * L::kCount + k] = latents[j].total[k];
      }
    }
  }
}

}  // namespace lebm::cuda
