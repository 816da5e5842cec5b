// The first row pass at D <= 4: queries in registers, latents in shared memory.
//
//   S = sum_n p~,   p~ = exp2(-c (E - m) + log2 w + a),   with sums of p~ (y - s g) and others
//
//   y, scale [B, M, D]; decoded [B, N, D] -> F [B, M], state [B, M, 4], slopes [B, M, D]
//
// The threads of a thread block are query threads times latent threads. The shift (m, a) of a query
// is the energy of a latent: at first the best of a sample of the grid. It is kept as long as the
// mass of each chunk of latents is at most 2^30. A chunk above that is summed again about its own
// best latent. This way no pair computes a maximum. A chunk is summed in T, the chunks of a tile in
// T, and the tiles in double.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "finish.cuh"
#include "load.cuh"
#include "narrow_tile.cuh"
#include "partial.cuh"
#include "regime.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

constexpr double kLargestChunkSum = 0x1p30;

// Adds one latent to a query's sums, which are the fields [2] and on of partial.cuh. It returns p~
// instead of adding it to the mass.
template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, Form kForm>
__device__ __forceinline__ T add(const Query<T, kD, kHasScale>& query, const T* record,
                                 T (&sums)[kSums<kD, kWants>]) {
  constexpr bool kSteep = kForm == Form::kSteep;
  T x[kD], e, p;
  if (kForm == Form::kPremultiplied) {
    e = query.a;
    for (int d = 0; d < kD; ++d) {
      x[d] = fused(query.minus_c, record[d], query.y[d]);
      e = fused(-x[d], x[d], e);
    }
    p = power(e);
  } else {
    e = kHasExtras ? record[kD + 1] : T(0);
    if (!kSteep) e = kHasExtras ? e - query.m : -query.m;
    for (int d = 0; d < kD; ++d) {
      x[d] = query.difference(record, d);
      e = fused(x[d], x[d], e);
    }
    if (kSteep) e -= query.m;
    const T a = kSteep ? query.addend() : query.a, minus_c = kSteep ? -query.rate : query.minus_c;
    p = power(fused(minus_c, e, kHasExtras ? record[kD] + a : a));
  }
  if (kWantsEnergy<kWants>) sums[1] = fused(p, lesser(e, T(Range<T>::kLargest)), sums[1]);
  if (kWants == kValue) return p;
  constexpr int kResidual = kWantsEnergy<kWants> ? 2 : 1;
  for (int d = 0; d < kD; ++d) {
    T& residual = sums[kResidual + d];
    if (kWants == kSlopeY) {
      residual = fused(p, x[d], residual);
    } else {
      const T px = p * x[d];
      residual += px;
      sums[kResidual + kD + d] = fused(px, record[d], sums[kResidual + kD + d]);
    }
    if (kWants == kEverything) {
      sums[kResidual + 2 * kD + d] = fused(p, record[d], sums[kResidual + 2 * kD + d]);
    }
  }
  return p;
}

// The running sums of one query. `lost` has the rounding errors of the first kExact sums. In float
// that is the mass, within a tile: F shows its errors if all energies are near the shift. In
// double, for which there is no longer type, these are all sums, to the end.
template <typename T, int kCount>
struct Sums {
  static constexpr bool kLongest = sizeof(T) == 8;
  static constexpr int kExact = kLongest ? kCount : 1;
  T tile[kCount], lost[kExact], largest;  // `largest`: the largest mass of a chunk
  double total[kCount];

  __device__ __forceinline__ void clear() {
    for (int i = 0; i < kCount; ++i) {
      tile[i] = T(0);
      total[i] = 0;
    }
    for (int i = 0; i < kExact; ++i) lost[i] = T(0);
    largest = T(0);
  }

  __device__ __forceinline__ void add(const T (&chunk)[kCount]) {
    largest = greater(largest, chunk[0]);
    for (int i = 0; i < kExact; ++i) add_exactly(tile[i], lost[i], chunk[i]);
    for (int i = kExact; i < kCount; ++i) tile[i] += chunk[i];
  }

  // Called after each tile. In double the sums go on over tiles.
  __device__ __forceinline__ void flush() {
    if (!kLongest) finish();
  }

  // Moves all sums into the totals.
  __device__ __forceinline__ void finish() {
    for (int i = 0; i < kCount; ++i) {
      total[i] += double(tile[i]);
      tile[i] = T(0);
    }
    for (int i = 0; i < kExact; ++i) {
      total[i] += double(lost[i]);
      lost[i] = T(0);
    }
  }
};

// The slow path for a chunk whose mass is too large or not finite: makes the best of its records
// the shift, rescales the sums so far to it, and sums the chunk again.
template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants>
__device__ void redo(Query<T, kD, kHasScale>& query, const T* tile, int first, int last, int step,
                     int group, T (&chunk)[kSums<kD, kWants>], Sums<T, kSums<kD, kWants>>& sums) {
  constexpr int kCount = kSums<kD, kWants>, kWidth = Layout<T, kD, kHasExtras>::kWidth;
  Best<T> best = {T(0), T(0), nullptr, false};
  for (int i = first; i < last; i += step * group) {
    for (int j = 0; j < group; ++j) {
      consider<T, kD, kHasScale, kHasExtras>(query, -query.rate, tile + (i + j) * kWidth, best);
    }
  }
  if (!best.record && query.a < infinity(T())) return;  // with a shift, a NaN is the result
  if (!best.record && !query.has_shift()) {
    // Infinite energies add nothing; a NaN makes the result NaN.
    for (int i = 0; i < kCount; ++i) chunk[i] = best.has_nan ? T(not_a_number()) : T(0);
    return;
  }
  const bool steep = query.has_shift() && !(query.a < infinity(T()));
  const bool better = best.record && (!steep || fused(-query.rate, best.energy - query.m,
                                                      best.weight + query.addend()) > T(0));
  if (better) {
    const bool had = query.has_shift();
    const double m = double(query.m), a = double(query.addend());
    shift_to<T, kD, kHasScale, kHasExtras>(query, best);
    sums.finish();
    const double exponent =
        log2_rescale(double(query.rate), m, a, double(query.m), double(query.addend()));
    const double factor = had ? double(power(T(fmin(exponent, 0.0)))) : 0.0;
    if (kWantsEnergy<kWants> && had) sums.total[1] += (m - double(query.m)) * sums.total[0];
    for (int i = 0; i < kCount; ++i) sums.total[i] *= factor;
    sums.largest *= T(factor);
  }
  for (int i = 0; i < kCount; ++i) chunk[i] = T(0);
  const bool slow = !(query.a < infinity(T()));
  for (int i = first; i < last; i += step * group) {
    for (int j = 0; j < group; ++j) {
      const T* record = tile + (i + j) * kWidth;
      chunk[0] +=
          slow ? add<T, kD, kHasScale, kHasExtras, kWants, Form::kSteep>(query, record, chunk)
               : add<T, kD, kHasScale, kHasExtras, kWants, Form::kPlain>(query, record, chunk);
    }
  }
}

// The same for a premultiplied query, which always has a shift.
template <typename T, int kD, int kWants>
__device__ void redo_premultiplied(Query<T, kD, false>& query, const T* tile, int first, int last,
                                   int step, int group, T (&chunk)[kSums<kD, kWants>],
                                   Sums<T, kSums<kD, kWants>>& sums) {
  constexpr int kCount = kSums<kD, kWants>, kWidth = Layout<T, kD, false>::kWidth;
  T least = query.a;
  for (int i = first; i < last; i += step * group) {
    for (int j = 0; j < group; ++j) {
      least = lesser(least, query.premultiplied_energy(tile + (i + j) * kWidth));
    }
  }
  sums.finish();
  const T factor = power(least - query.a);
  for (int i = 0; i < kCount; ++i) sums.total[i] *= double(factor);
  sums.largest *= factor;
  query.a = least;
  for (int i = 0; i < kCount; ++i) chunk[i] = T(0);
  for (int i = first; i < last; i += step * group) {
    for (int j = 0; j < group; ++j) {
      chunk[0] += add<T, kD, false, false, kWants, Form::kPremultiplied>(
          query, tile + (i + j) * kWidth, chunk);
    }
  }
}

// Adds a chunk of records to the sums of kQueries queries: the groups first, first + step, ...
// below last, of kGroup records each.
template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, int kQueries, int kGroup,
          Form kForm>
__device__ __forceinline__ void add_chunk(Query<T, kD, kHasScale> (&queries)[kQueries],
                                          const T* tile, int first, int last, int step,
                                          Sums<T, kSums<kD, kWants>> (&sums)[kQueries]) {
  constexpr int kCount = kSums<kD, kWants>, kWidth = Layout<T, kD, kHasExtras>::kWidth;
  using Group = Packed<T, kGroup * kWidth>;
  T chunk[kQueries][kCount];
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    for (int i = 0; i < kCount; ++i) chunk[q][i] = T(0);
  }
  const Group* groups = reinterpret_cast<const Group*>(tile) + first;
  auto add_group = [&](const Group group) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      T sum = T(0);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const T p = add<T, kD, kHasScale, kHasExtras, kWants, kForm>(
            queries[q], group.at + j * kWidth, chunk[q]);
        sum = j == 0 ? p : sum + p;
      }
      chunk[q][0] += sum;
    }
  };
  // The loop over a whole chunk has a constant length, for the compiler to unroll.
  constexpr int kWhole = kChunk / Layout<T, kD, kHasExtras>::kGroup;
  if (last - first > (kWhole - 1) * step) {
#pragma unroll(kQueries > 1 ? kWhole : 8)
    for (int i = 0; i < kWhole; ++i) add_group(groups[i * step]);
  } else {
    for (int i = 0; i < last - first; i += step) add_group(groups[i]);
  }
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    if (!(chunk[q][0] <= T(kLargestChunkSum))) {
      if constexpr (kForm == Form::kPremultiplied) {
        redo_premultiplied<T, kD, kWants>(queries[q], tile, first * kGroup, last * kGroup, step,
                                          kGroup, chunk[q], sums[q]);
      } else {
        redo<T, kD, kHasScale, kHasExtras, kWants>(queries[q], tile, first * kGroup, last * kGroup,
                                                   step, kGroup, chunk[q], sums[q]);
      }
    }
    sums[q].add(chunk[q]);
  }
}

// The least energy so far, and the first latent that has it. These energies do not depend on the
// shift.
template <typename T>
struct Least {
  T energy;
  int64_t index;
};

template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ void find_least(const Query<T, kD, kHasScale>& query, const T* tile, int first, int last,
                           int step, int64_t start, Least<T>& least) {
  for (int i = first; i < last; i += step) {
    const T* record = tile + i * Layout<T, kD, kHasExtras>::kWidth;
    if (kHasExtras && !(record[kD] > -infinity(T()))) continue;
    const T energy = query.energy(record, kHasExtras ? record[kD + 1] : T(0));
    const int64_t n = start + i;
    if (energy < least.energy || (energy == least.energy && n < least.index)) {
      least = {energy, n};
    }
  }
}

// Adds a tile of `count` latents to the sums.
template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, Form kForm, int kQueries>
__device__ __forceinline__ void add_tile(Query<T, kD, kHasScale> (&queries)[kQueries],
                                         const T* tile, int count, int latent_thread, int step,
                                         Sums<T, kSums<kD, kWants>> (&sums)[kQueries]) {
  constexpr int kGroup = Layout<T, kD, kHasExtras>::kGroup;
  const int groups = count / kGroup, chunk = step * (kChunk / kGroup);
  for (int i = latent_thread; i < groups; i += chunk) {
    add_chunk<T, kD, kHasScale, kHasExtras, kWants, kQueries, kGroup, kForm>(
        queries, tile, i, min(i + chunk, groups), step, sums);
  }
  if (kGroup > 1 && groups * kGroup < count) {
    add_chunk<T, kD, kHasScale, kHasExtras, kWants, kQueries, 1, kForm>(
        queries, tile, groups * kGroup + latent_thread, count, step, sums);
  }
}

template <typename T, int kD, bool kHasScale, bool kHasExtras, int kWants, int kQueries>
__global__ void __launch_bounds__(kThreads)
    narrow_rows_kernel(const __grid_constant__ RowTask<T> task) {
  using L = Layout<T, kD, kHasExtras>;
  constexpr int kCount = kSums<kD, kWants>, kAll = kFields<kD, kWants>;
  constexpr int kDoubles = L::kNumbers * int(sizeof(T)) / 8;
  constexpr int kScratch = kAll * kThreads * kQueries;
  LEBM_SHARED(double2, storage, [((kDoubles > kScratch ? kDoubles : kScratch) + 1) / 2]);
  T* const tile = reinterpret_cast<T*>(storage);
  const Problem<T>& problem = task.problem;
  const RowPlan& plan = task.plan;

  // If a thread has several queries, every thread has some.
  const int query_threads = kQueries > 1 ? kThreads : plan.query_threads;
  const int query_thread = int(threadIdx.x) % query_threads;
  const int latent_thread = int(threadIdx.x) / query_threads;
  const int latent_threads = kThreads / query_threads;
  const int64_t queries_per_block = int64_t(query_threads) * kQueries;
  const int64_t blocks = (problem.M + queries_per_block - 1) / queries_per_block;
  const int64_t b = blockIdx.x / blocks;
  const int64_t first_query = blockIdx.x % blocks * queries_per_block + query_thread;

  Query<T, kD, kHasScale> queries[kQueries];
  Sums<T, kCount> sums[kQueries];
  Least<T> least = {infinity(T()), 0};
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    const int64_t m = first_query + int64_t(q) * query_threads;
    const bool valid = m < problem.M && is_valid(problem, b, m);
    queries[q].read(problem, b, m < problem.M ? m : 0, valid);
    const double beta = valid ? double(load(problem.beta, b, m)) : 0.0;
    if (!is_cold<T>(beta)) queries[q].rate = valid ? T(beta * kLog2E) : T(1);
    sums[q].clear();
  }

  const int sample = int(problem.N < kSample ? problem.N : kSample);
  load_tile<T, kD, kHasExtras>(task, b, 0, problem.N, sample, tile);
  __syncthreads();  // the sample is written
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    const Best<T> best =
        best_of<T, kD, kHasScale, kHasExtras>(queries[q], -queries[q].rate, tile, 0, sample, 1);
    if (best.record) shift_to<T, kD, kHasScale, kHasExtras>(queries[q], best);
  }
  // A warp premultiplies its queries if all of them can be.
  constexpr bool kMayPremultiply = kQueries > 1 && !kHasScale && !kHasExtras && kWants == kValue;
  bool premultiplied = kMayPremultiply;
  if constexpr (kMayPremultiply) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q)
      premultiplied = premultiplied && queries[q].can_premultiply();
    premultiplied = __all_sync(0xffffffffu, premultiplied);
#pragma unroll
    for (int q = 0; q < kQueries && premultiplied; ++q) queries[q].premultiply();
  }

  const int64_t begin = blockIdx.y * plan.split_size;
  const int64_t end = begin + plan.split_size < problem.N ? begin + plan.split_size : problem.N;
  for (int64_t start = begin; start < end; start += L::kTile) {
    const int count = int(end - start < L::kTile ? end - start : L::kTile);
    __syncthreads();  // the last tile is read
    load_tile<T, kD, kHasExtras>(task, b, start, 0, count, tile);
    __syncthreads();  // the tile is written
    if constexpr (kMayPremultiply) {
      if (premultiplied) {
        add_tile<T, kD, kHasScale, kHasExtras, kWants, Form::kPremultiplied>(
            queries, tile, count, latent_thread, 1, sums);
      }
    }
    if (!kMayPremultiply || !premultiplied) {
      add_tile<T, kD, kHasScale, kHasExtras, kWants, Form::kPlain>(
          queries, tile, count, latent_thread, latent_threads, sums);
    }
    if (kWants == kEverything) {
      find_least<T, kD, kHasScale, kHasExtras>(queries[0], tile, latent_thread, count,
                                               latent_threads, start, least);
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) sums[q].flush();
  }

  double* const scratch = reinterpret_cast<double*>(storage);
  __syncthreads();  // the tile is read
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    sums[q].finish();
    double* const to = scratch + q * kAll * kThreads + threadIdx.x;
    const double root = kMayPremultiply && premultiplied ? -double(queries[q].minus_c) : 1.0;
    to[0] = kMayPremultiply && premultiplied ? double(queries[q].a) / (root * root)
                                             : double(queries[q].m);
    to[kThreads] = kMayPremultiply && premultiplied ? 0.0 : double(queries[q].addend());
    for (int i = 0; i < kCount; ++i) to[(2 + i) * kThreads] = sums[q].total[i];
    to[kLargestChunk<kD, kWants> * kThreads] = double(sums[q].largest);
    if (kWants == kEverything) {
      to[(kAll - 2) * kThreads] = double(least.energy);
      to[(kAll - 1) * kThreads] = double(least.index);
    }
  }
  // Each thread reads what it wrote, one query at a time: arrays in registers cannot be indexed in
  // a loop that is not unrolled, and unrolling the finish would take many instructions.
#pragma unroll 1
  for (int q = 0; q < kQueries; ++q) {
    const int64_t m = first_query + int64_t(q) * query_threads;
    double fields[kAll];
    for (int i = 0; i < kAll; ++i) fields[i] = scratch[(q * kAll + i) * kThreads + threadIdx.x];
    if (kQueries == 1) {
      const double c = m < problem.M ? rate_at(problem, b, m) : 0.0;
      merge_threads<kD, kWants>(c, query_threads, latent_threads, scratch, fields);
    }
    if (latent_thread != 0 || m >= problem.M) continue;
    if (plan.num_splits > 1) {
      store_partial(task, blockIdx.y, b * problem.M + m, fields);
    } else {
      finish_narrow_first<T, kD, kWants>(task, b, m, fields);
    }
  }
}

}  // namespace lebm::cuda
