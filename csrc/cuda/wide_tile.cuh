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

// More than 48 KB of shared memory would have to be asked for at the launch.
template <typename T>
constexpr bool kTilesFit =
    sizeof(WideTile<T, false>) <= 48 << 10 && sizeof(WideTile<T, true>) <= 48 << 10;
static_assert(kTilesFit<float> && kTilesFit<double>);

__device__ __forceinline__ int lane_of_thread() { return int(threadIdx.x) % kLanes; }
__device__ __forceinline__ int warp_of_thread() { return int(threadIdx.x) / kLanes; }

// The place in the tile of another of this lane.
template <typename T>
__device__ __forceinline__ int other_of_lane(int j) {
  constexpr int kAtOnce = kVector<T>;
  return j / kAtOnce * kLanes * kAtOnce + lane_of_thread() * kAtOnce + j % kAtOnce;
}

// The items of a tile: `count` of them from `first` on, `step` apart.
struct Items {
  int64_t first, count, step;

  __device__ __forceinline__ int64_t at(int64_t i) const { return first + i * step; }
};

// The next items before `end`.
__device__ __forceinline__ Items items_from(int64_t first, int64_t most, int64_t end) {
  return {first, end - first < most ? end - first : most, 1};
}

// A sample spread evenly over `size` items.
__device__ __forceinline__ Items sample_of(int64_t size, int64_t most) {
  const int64_t step = (size + most - 1) / most;
  return {0, (size + step - 1) / step, step};
}

// The points of one side in one grid, or their scale, which is 1 if it is absent. With `vectors`
// they are loaded by 16 bytes.
template <typename T>
struct Points {
  const T* data;
  int64_t stride, step, D;
  bool vectors;

  __device__ __forceinline__ const T* at(int64_t i, int64_t d) const {
    return data + i * stride + d * step;
  }

  // 16 bytes of a point from dimension d on; 0 beyond D.
  template <bool kVectors>
  __device__ __forceinline__ Vector<T> load_from(const T* from, int64_t d) const {
    Vector<T> found = {};
    if constexpr (kVectors) {
      if (d < D) found = *reinterpret_cast<const Vector<T>*>(from);
    } else {
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) {
        if (d + k < D) found.at[k] = data ? from[k * step] : T(1);
      }
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

template <typename T>
__device__ __forceinline__ Vector<T> load_point(const Points<T>& points, int64_t i, int64_t d) {
  const T* const from = points.at(i, d);
  return points.vectors ? points.template load_from<true>(from, d)
                        : points.template load_from<false>(from, d);
}

// Calls `use(i, d, vector)` for kCount items after the first `from` ones, and kWidth dimensions
// from `start` on, divided over the threads. An item that is outside, or whose weight is -inf, is
// 0. All loads of a thread come before their use.
template <bool kVectors, typename T, int kCount, int kWidth, typename Use>
__device__ __forceinline__ void load_points_by(const Points<T>& points, const Items& items,
                                               int from, int64_t start, const T* weight, Use use) {
  constexpr int kGroups = kWidth / kVector<T>, kSteps = kCount * kGroups / kThreads;
  static_assert(kSteps * kThreads == kCount * kGroups);
  const int d = int(threadIdx.x) % kGroups * kVector<T>, first = int(threadIdx.x) / kGroups;
  const T* at = points.at(items.at(from + first), start + d);
  const int64_t hop = kThreads / kGroups * items.step * points.stride;
  Vector<T> loaded[kSteps];
#pragma unroll
  for (int k = 0; k < kSteps; ++k, at += hop) {
    const int i = from + first + k * (kThreads / kGroups);
    loaded[k] = {};
    if (i >= items.count || (weight && weight[i] == -infinity(T()))) continue;
    loaded[k] = points.template load_from<kVectors>(at, start + d);
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) use(first + k * (kThreads / kGroups), d, loaded[k]);
}

template <typename T, int kCount, int kWidth, typename Use>
__device__ __forceinline__ void load_points(const Points<T>& points, const Items& items, int from,
                                            int64_t start, const T* weight, Use use) {
  points.vectors
      ? load_points_by<true, T, kCount, kWidth>(points, items, from, start, weight, use)
      : load_points_by<false, T, kCount, kWidth>(points, items, from, start, weight, use);
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
#pragma unroll 2
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
