// A tile of pairs at D > 4: energies in registers, by differences, over slabs of dimensions.
//
//   E = sum_d (y[q,d] - s[q,d] g[n,d])^2 + r[n]
//
// A pass sums over the items of one side, the `others` (latents in the row pass, queries in the
// column pass), for each item of the other side, its `own`. A tile has 32 own and 256 others (128
// in double). Each of the four warps has 8 own; each of its lanes has all 8 of them with 8 (4)
// others. So what a warp sums over others needs no other warp.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "load.cuh"
#include "splits.cuh"

namespace lebm::cuda {

constexpr int kLanes = 32, kWarps = kThreads / kLanes, kSlab = 16;
constexpr int kOwn = 8;  // own items of a warp
constexpr int kTileOwn = kWarps * kOwn;

// Numbers in 16 bytes: one load of shared or global memory.
template <typename T>
constexpr int kVector = 16 / int(sizeof(T));
template <typename T>
struct alignas(16) Vector {
  T at[kVector<T>];
};

// Others of a lane, and of a tile.
template <typename T>
constexpr int kPer = 32 / int(sizeof(T));
template <typename T>
constexpr int kTileOthers = kLanes * kPer<T>;

// Rows are padded by 16 bytes: 16 bytes of a row are read at once, and columns are written.
template <typename T>
constexpr int kOwnPitch = kTileOwn + kVector<T>;
template <typename T>
constexpr int kOtherPitch = kTileOthers<T> + kVector<T>;

// A warp's p. Its lanes write others kVector apart; the padding puts them into different banks.
template <typename T>
constexpr int kWarpPairs = kTileOthers<T> * kOwn + kTileOthers<T>;

template <typename T, bool kColumns>
struct WideSlabs {
  T own[kSlab][kOwnPitch<T>], other[kSlab][kOtherPitch<T>];
  T scale[kSlab][kColumns ? kOtherPitch<T> : kOwnPitch<T>];  // of the queries
};

template <typename T, bool kColumns>
struct alignas(16) WideTile {
  static constexpr int kLatents = kColumns ? kTileOwn : kTileOthers<T>;
  union {
    WideSlabs<T, kColumns> slabs;  // while energies are summed
    T p[kWarps][kWarpPairs<T>];    // then p~ or G p of the pairs
  };
  T stage[kTileOthers<T> / 2 * kSlab];  // others as wide_moments.cuh reads them
  T weight[kLatents];                   // log2 w; -inf: dropped, or outside the grid
  T energy[kLatents];                   // r
};

__device__ __forceinline__ int lane_of_thread() { return int(threadIdx.x) % kLanes; }
__device__ __forceinline__ int warp_of_thread() { return int(threadIdx.x) / kLanes; }

// The place in the tile of another of this lane.
template <typename T>
__device__ __forceinline__ int other_of_lane(int j) {
  constexpr int kAtOnce = kVector<T>;
  return j / kAtOnce * kLanes * kAtOnce + lane_of_thread() * kAtOnce + j % kAtOnce;
}

// Items of a tile: `count` from `first` on, or a sample of `count` spread evenly over all `size`.
struct Items {
  int64_t first, count, size;
  bool sample;

  __device__ __forceinline__ int64_t at(int64_t i) const {
    return sample ? i * size / count : first + i;
  }
};

__device__ __forceinline__ Items items_from(int64_t first, int64_t most, int64_t end) {
  return {first, end - first < most ? end - first : most, end, false};
}

// The points of one side in one grid, or their scale, which is 1 if it is absent. With `vectors`
// they are loaded by 16 bytes.
template <typename T>
struct Points {
  const T* data;
  int64_t stride, step, D;
  bool vectors;

  __device__ __forceinline__ Vector<T> load_at(int64_t i, int64_t d) const {
    const T* const from = data + i * stride + d * step;
    if (vectors && d < D) return *reinterpret_cast<const Vector<T>*>(from);
    Vector<T> found;
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) {
      found.at[k] = !data ? T(1) : d + k < D ? from[k * step] : T(0);
    }
    return found;
  }
};

template <typename T>
__device__ __forceinline__ Points<T> points_of(const View<T>& x, int64_t b, int64_t D) {
  if (!x.data) return {nullptr, 0, 0, D, false};
  const T* const data = x.data + b * x.stride[0];
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && x.stride[2] == 1 &&
                       x.stride[1] % kVector<T> == 0 && D % kVector<T> == 0;
  return {data, x.stride[1], x.stride[2], D, aligned};
}

// Calls `use(i, d, vector)` for the first `count` items and `kWidth` dimensions from `start` on,
// divided over the threads. An item that is outside, or whose weight is -inf, is 0. All loads of a
// thread come before their use.
template <typename T, int kCount, int kWidth, typename Use>
__device__ __forceinline__ void load_points(const Points<T>& points, const Items& items, int from,
                                            int64_t start, const T* weight, Use use) {
  constexpr int kGroups = kWidth / kVector<T>, kSteps = kCount * kGroups / kThreads;
  static_assert(kSteps * kThreads == kCount * kGroups);
  const int d = int(threadIdx.x) % kGroups * kVector<T>;
  Vector<T> loaded[kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int i = from + (int(threadIdx.x) + k * kThreads) / kGroups;
    const bool used = i < items.count && !(weight && weight[i] == -infinity(T()));
    loaded[k] = used ? points.load_at(items.at(i), start + d) : Vector<T>{};
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    use((int(threadIdx.x) + k * kThreads) / kGroups, d, loaded[k]);
  }
}

// Loads a slab of dimensions from `start` on, transposed.
template <typename T, int kCount, int kPitch>
__device__ __forceinline__ void load_slab(const Points<T>& points, const Items& items,
                                          int64_t start, const T* weight, T (&to)[kSlab][kPitch]) {
  load_points<T, kCount, kSlab>(points, items, 0, start, weight,
                                [&](int i, int d, const Vector<T>& x) {
#pragma unroll
                                  for (int k = 0; k < kVector<T>; ++k) to[d + k][i] = x.at[k];
                                });
}

// Loads log2 w and r into the tile. The next barrier makes them visible to all threads.
template <typename T, bool kColumns>
__device__ __forceinline__ void load_weights(const Problem<T>& p, const double* normaliser,
                                             int64_t b, const Items& latents,
                                             WideTile<T, kColumns>& tile) {
  for (int i = threadIdx.x; i < tile.kLatents; i += kThreads) {
    const bool inside = i < latents.count;
    const int64_t n = inside ? latents.at(i) : 0;
    const T weight = inside ? log2_weight(p, normaliser, b, n) : -infinity(T());
    tile.weight[i] = weight;
    tile.energy[i] =
        p.latent_energy.data && weight != -infinity(T()) ? load(p.latent_energy, b, n) : T(0);
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void read_vectors(const T* from, T (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += kVector<T>) {
    const Vector<T> x = *reinterpret_cast<const Vector<T>*>(from + i);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) to[i + k] = x.at[k];
  }
}

// Adds one dimension of the slabs to the sums of this lane's pairs.
template <typename T, bool kColumns, bool kHasScale>
__device__ __forceinline__ void add_dimension(const WideSlabs<T, kColumns>& slabs, int d,
                                              T (&sums)[kOwn][kPer<T>]) {
  constexpr int kNear = kVector<T>;  // others of a lane that lie side by side
  constexpr int kScales = kColumns ? kNear : kOwn;
  const int mine = warp_of_thread() * kOwn;
  T own[kOwn];
  read_vectors(&slabs.own[d][mine], own);
#pragma unroll
  for (int j = 0; j < kPer<T>; j += kNear) {
    T other[kNear], scale[kScales];
    read_vectors(&slabs.other[d][other_of_lane<T>(j)], other);
    if (kHasScale) read_vectors(&slabs.scale[d][kColumns ? other_of_lane<T>(j) : mine], scale);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int k = 0; k < kNear; ++k) {
        const T y = kColumns ? other[k] : own[i], g = kColumns ? own[i] : other[k];
        const T x = kHasScale ? fused(-scale[kColumns ? k : i], g, y) : y - g;
        sums[i][j + k] = fused(x, x, sums[i][j + k]);
      }
    }
  }
}

// Computes the energies of this lane's pairs. Those of dropped latents are without r and decoded,
// and are not used. Begins and ends with a barrier.
template <typename T, bool kColumns, bool kHasScale>
__device__ __forceinline__ void tile_energies(const Problem<T>& p, int64_t b, const Items& own,
                                              const Items& others, WideTile<T, kColumns>& tile,
                                              T (&e)[kOwn][kPer<T>]) {
  const Points<T> y = points_of(p.y, b, p.D), g = points_of(p.decoded, b, p.D);
  const Points<T> s = points_of(kHasScale ? p.scale : p.y, b, p.D);
  __syncthreads();  // log2 w and r are written, the last tile is read
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      e[i][j] = tile.energy[kColumns ? warp_of_thread() * kOwn + i : other_of_lane<T>(j)];
    }
  }
  WideSlabs<T, kColumns>& slabs = tile.slabs;
  for (int64_t start = 0; start < p.D; start += kSlab) {
    load_slab<T, kTileOwn>(kColumns ? g : y, own, start, kColumns ? tile.weight : nullptr,
                           slabs.own);
    load_slab<T, kTileOthers<T>>(kColumns ? y : g, others, start, kColumns ? nullptr : tile.weight,
                                 slabs.other);
    if (kHasScale) {
      load_slab<T, (kColumns ? kTileOthers<T> : kTileOwn)>(s, kColumns ? others : own, start,
                                                           nullptr, slabs.scale);
    }
    __syncthreads();  // the slabs are written
    T sums[kOwn][kPer<T>];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) sums[i][j] = T(0);
    }
    const int dimensions = int(p.D - start < kSlab ? p.D - start : kSlab);
#pragma unroll 4
    for (int d = 0; d < dimensions; ++d) add_dimension<T, kColumns, kHasScale>(slabs, d, sums);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) e[i][j] += sums[i][j];
    }
    __syncthreads();  // the slabs are read
  }
}

}  // namespace lebm::cuda
