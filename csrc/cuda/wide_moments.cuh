// Sums for each dimension over a tile of pairs at D > 4, as in a product of small matrices.
//
//   row pass      sums over n of p (y - s g), p (y - s g) g and p g, for each query
//   column pass   sum over q of p s (y - s g), for each latent
//
// A warp has the p of its 8 own items with all others of the tile. A pass over the others sums 16
// dimensions (8 if D is at most that). The lanes of a warp divide these dimensions, 16 bytes of
// them a lane, and the others. A lane holds its own items and their sums in registers, and reads p
// and the other item from shared memory by 16 bytes. Sums over a tile, in T, are added to sums in
// double in memory: one addition for 256 (in double 128) others.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "fold.cuh"
#include "splits.cuh"
#include "wide_tile.cuh"

namespace lebm::cuda {

// The place of another's p in a warp's part of the tile; those of 8 own items follow each other.
template <typename T>
__device__ __forceinline__ constexpr int place_of_pairs(int other) {
  return other * kOwn + other / kVector<T> * kVector<T>;
}

// Writes this lane's p for its warp. The next barrier makes them visible.
template <typename T, bool kColumns>
__device__ __forceinline__ void store_pairs(const T (&p)[kOwn][kPer<T>],
                                            WideTile<T, kColumns>& tile) {
  T* const to = tile.p[warp_of_thread()];
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    const int at = place_of_pairs<T>(other_of_lane<T>(j));
#pragma unroll
    for (int i = 0; i < kOwn; i += kVector<T>) {
      Vector<T> x;
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) x.at[k] = p[i + k][j];
      *reinterpret_cast<Vector<T>*>(to + at + i) = x;
    }
  }
}

// Where sums are added in double: sum k of own item i and dimension d, in base[i * stride + k D +
// d].
struct MomentTotals {
  double* base;
  int64_t stride;
  bool wants[3];
  bool is_first;  // there is nothing to add to yet
};

// A lane sums this many own items at a time, so that all their sums are in registers.
template <int kKinds>
constexpr int kOwnAtOnce = kKinds == 3 ? kOwn / 2 : kOwn;

// The sums of a lane for these own items and for the dimensions that fit into 16 bytes.
template <typename T, int kKinds>
constexpr int kLaneMoments = kOwnAtOnce<kKinds> * kVector<T>;

// Adds one other item to a lane's sums.
template <typename T, bool kColumns, bool kHasScale, int kKinds>
__device__ __forceinline__ void add_other(const T (&p)[kOwnAtOnce<kKinds>],
                                          const Vector<T> (&own)[kOwnAtOnce<kKinds>],
                                          const Vector<T> (&own_scale)[kOwnAtOnce<kKinds>],
                                          const Vector<T>& other, const Vector<T>& other_scale,
                                          T (&sums)[kKinds][kLaneMoments<T, kKinds>]) {
#pragma unroll
  for (int i = 0; i < kOwnAtOnce<kKinds>; ++i) {
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) {
      const T y = kColumns ? other.at[k] : own[i].at[k], g = kColumns ? own[i].at[k] : other.at[k];
      const T s = kColumns ? other_scale.at[k] : own_scale[i].at[k];
      const T x = kHasScale ? fused(-s, g, y) : y - g;
      const int at = i * kVector<T> + k;
      sums[0][at] = fused(kColumns && kHasScale ? p[i] * s : p[i], x, sums[0][at]);
      if constexpr (kKinds == 3) {
        sums[1][at] = fused(p[i] * x, g, sums[1][at]);
        sums[2][at] = fused(p[i], g, sums[2][at]);
      }
    }
  }
}

// Adds a lane's sums, of the warp's own items from `first_own` on, to those in memory. `factor`
// multiplies what is there for the warp's own item lane / 4.
template <typename T, int kGroups, int kKinds>
__device__ __forceinline__ void add_to_totals(const MomentTotals& totals, const Items& own,
                                              int first_own, int64_t first_dimension, int64_t D,
                                              T factor,
                                              T (&sums)[kKinds][kLaneMoments<T, kKinds>]) {
  constexpr int kKept = kLaneMoments<T, kKinds> * kGroups / kLanes;
  const int lane = lane_of_thread();
#pragma unroll
  for (int k = 0; k < kKinds; ++k) fold_sums<kGroups>(sums[k]);
#pragma unroll
  for (int m = 0; m < kKept; ++m) {
    const int at = lane / kGroups * kKept + m, i = first_own + at / kVector<T>;
    const T own_factor = __shfl_sync(0xffffffffu, factor, i * (kLanes / kOwn));
    const int64_t d = first_dimension + at % kVector<T>;
    const int64_t item = warp_of_thread() * kOwn + i;
    if (item >= own.count || d >= D) continue;
    double* const to = totals.base + item * totals.stride + d;
#pragma unroll
    for (int k = 0; k < kKinds; ++k) {
      if (!totals.wants[k]) continue;
      const double sum = double(sums[k][m]);
      to[k * D] = totals.is_first ? sum : fma(double(own_factor), to[k * D], sum);
    }
  }
}

template <typename T, bool kColumns, bool kHasScale, int kKinds, int kGroups>
__device__ __forceinline__ void add_moments_by(const Problem<T>& problem, int64_t b,
                                               const Items& own, const Items& others, T factor,
                                               const MomentTotals& totals,
                                               WideTile<T, kColumns>& tile) {
  constexpr int kWidth = kGroups * kVector<T>, kSubsets = kLanes / kGroups;
  constexpr bool kStagesScale = kColumns && kHasScale;
  constexpr int kHere = kOwnAtOnce<kKinds>;
  constexpr int kStage = kTileOthers<T> / 2 * kSlab / kWidth / (kStagesScale ? 2 : 1);
  const Points<T> y = points_of(problem.y, b, problem.D);
  const Points<T> g = points_of(problem.decoded, b, problem.D);
  const Points<T> s = points_of(kHasScale ? problem.scale : problem.y, b, problem.D);
  const int lane = lane_of_thread(), warp = warp_of_thread();
  const int lane_dimension = lane % kGroups * kVector<T>, subset = lane / kGroups;
  // Of each `kWidth` dimensions, kHere own items at a time.
  for (int64_t step = 0; step * kHere < divide_up(problem.D, kWidth) * kOwn; ++step) {
    const int64_t start = step / (kOwn / kHere) * kWidth;
    const int first_own = int(step % (kOwn / kHere)) * kHere;
    Vector<T> mine[kHere], my_scale[kHere];
#pragma unroll
    for (int i = 0; i < kHere; ++i) {
      const int item = warp * kOwn + first_own + i;
      const bool used = item < own.count && !(kColumns && tile.weight[item] == -infinity(T()));
      mine[i] = my_scale[i] = Vector<T>{};
      if (!used) continue;
      const int64_t d = start + lane_dimension;
      mine[i] = load_point(kColumns ? g : y, own.at(item), d);
      if (kHasScale && !kColumns) my_scale[i] = load_point(s, own.at(item), d);
    }
    T sums[kKinds][kLaneMoments<T, kKinds>];
#pragma unroll
    for (int k = 0; k < kKinds; ++k) {
#pragma unroll
      for (int i = 0; i < kLaneMoments<T, kKinds>; ++i) sums[k][i] = T(0);
    }
    for (int from = 0; from < int(others.count); from += kStage) {
      __syncthreads();  // the stage is read, p is written
      auto store_at = [&](T* to) {
        return [to](int i, int d, const Vector<T>& x) {
          *reinterpret_cast<Vector<T>*>(to + i * kWidth + d) = x;
        };
      };
      load_points<T, kStage, kWidth>(kColumns ? y : g, others, from, start,
                                     kColumns ? nullptr : tile.weight, store_at(tile.stage));
      if (kStagesScale) {
        load_points<T, kStage, kWidth>(s, others, from, start, nullptr,
                                       store_at(tile.stage + kStage * kWidth));
      }
      __syncthreads();  // the stage is written
      const int left = int(others.count) - from, count = left < kStage ? left : kStage;
      const T* pairs = tile.p[warp] + place_of_pairs<T>(from + subset) + first_own;
      const T* staged = tile.stage + subset * kWidth + lane_dimension;
#pragma unroll 2
      for (int n = subset; n < count; n += kSubsets) {
        T p[kHere];
        read_vectors(pairs, p);
        const Vector<T> other = *reinterpret_cast<const Vector<T>*>(staged);
        Vector<T> other_scale = {};
        if (kStagesScale) {
          other_scale = *reinterpret_cast<const Vector<T>*>(staged + kStage * kWidth);
        }
        add_other<T, kColumns, kHasScale, kKinds>(p, mine, my_scale, other, other_scale, sums);
        pairs += place_of_pairs<T>(kSubsets);
        staged += kSubsets * kWidth;
      }
    }
    add_to_totals<T, kGroups, kKinds>(totals, own, first_own, start + lane_dimension, problem.D,
                                      factor, sums);
  }
}

// Adds the moments of a tile, whose p have been stored by store_pairs.
template <typename T, bool kColumns, bool kHasScale, int kKinds>
__device__ __forceinline__ void add_moments(const Problem<T>& problem, int64_t b, const Items& own,
                                            const Items& others, T factor,
                                            const MomentTotals& totals,
                                            WideTile<T, kColumns>& tile) {
  constexpr int kAll = kSlab / kVector<T>;
  problem.D <= kSlab / 2 ? add_moments_by<T, kColumns, kHasScale, kKinds, kAll / 2>(
                               problem, b, own, others, factor, totals, tile)
                         : add_moments_by<T, kColumns, kHasScale, kKinds, kAll>(
                               problem, b, own, others, factor, totals, tile);
}

}  // namespace lebm::cuda
