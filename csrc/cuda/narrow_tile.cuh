// A tile of latents in shared memory at D <= 4, and a query in registers.
//
//   E[n] = sum_d (y[d] - s[d] g[n,d])^2 + r[n]
//
// A latent is a record of kWidth numbers: g[D], then with kHasExtras log2 w and r. Records are read
// in groups, of 16 bytes where possible. A dropped latent (log2 w = -inf) has g = r = 0, whatever
// its decoded values are.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "arithmetic.cuh"
#include "device.cuh"
#include "load.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

constexpr int kTileBytes = 16384;

template <typename T, int kD, bool kHasExtras>
struct Layout {
  static constexpr int kUsed = kD + (kHasExtras ? 2 : 0);
  static constexpr int kWidth = kUsed == 3 ? 4 : kUsed == 5 ? 6 : kUsed;
  static constexpr int kGroup = kWidth == 1 ? 4 : kWidth == 2 ? 2 : 1;  // records per read
  static constexpr int kTile = kTileBytes / int(sizeof(T)) / kWidth / kSample * kSample;
  static constexpr int kNumbers = kTile * kWidth;
};

template <typename T, int kCount>
struct alignas(kCount * sizeof(T) % 16 == 0 ? 16 : sizeof(T) * (kCount % 2 == 0 ? 2 : 1)) Packed {
  T at[kCount];
};

// Copies `count` latents to the tile: those from `first` on; or with spread > 0 a sample of the
// first `spread` latents, one from each of `count` equal runs. Its place in the run is
// pseudo-random, so that a grid with a period is sampled evenly.
template <typename T, int kD, bool kHasExtras>
__device__ void load_tile(const RowTask<T>& task, int64_t b, int64_t first, int64_t spread,
                          int count, T* tile) {
  using L = Layout<T, kD, kHasExtras>;
  const Problem<T>& problem = task.problem;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const double place = i + double(uint32_t(i) * 2654435769u) * 0x1p-32;
    const int64_t n =
        spread > 0 ? min(int64_t(place * double(spread) / count), spread - 1) : first + i;
    T* record = tile + i * L::kWidth;
    bool dropped = false;
    if (kHasExtras) {
      const T weight = log2_weight(problem, task.normaliser, b, n);
      dropped = weight == -infinity(T());
      record[kD] = weight;
      record[kD + 1] =
          problem.latent_energy.data && !dropped ? load(problem.latent_energy, b, n) : T(0);
    }
    for (int d = 0; d < kD; ++d) record[d] = dropped ? T(0) : load(problem.decoded, b, n, d);
  }
}

// How the exponent -c (E - m) + a is computed. Plain: -m is the start of the sum over dimensions.
// Steep: E is computed first, and m subtracted from it. Premultiplied, with one instruction less:
// a' - sum_d (sqrt(c) y - sqrt(c) g)^2.
enum class Form { kPlain, kSteep, kPremultiplied };

// The largest c |y|^2 and |a'| of premultiplied queries. sqrt(c) y is rounded, as if y had moved,
// and that error stays where y - g would be exact: for a g close to y.
constexpr double kLargestNorm = 30.0, kLargestAddend = 128.0;

// A query: y and the scale s, rate = c = beta log2(e), the shift (m, a), and minus_c = -c.
//
// Without a shift m = inf. Without a shift, and for a steep query (see is_steep), a = inf: then
// every chunk's mass is infinite, and the slow path of narrow_rows.cuh sums the chunk instead. A
// steep query keeps its actual a in minus_c. A premultiplied query has sqrt(c) y in y, -sqrt(c) in
// minus_c, m = 0, and c m (of the m before) in a.
template <typename T, int kD, bool kHasScale>
struct Query {
  T y[kD], s[kHasScale ? kD : 1];
  T rate, m, a, minus_c;

  __device__ __forceinline__ bool has_shift() const { return m < infinity(T()); }
  __device__ __forceinline__ T addend() const { return a < infinity(T()) ? a : minus_c; }

  __device__ __forceinline__ T difference(const T* g, int d) const {
    return kHasScale ? fused(-s[kHasScale ? d : 0], g[d], y[d]) : y[d] - g[d];
  }

  // start + sum_d (y - s g)^2. With start = -m, subtracting the shift costs no instruction.
  __device__ __forceinline__ T energy(const T* g, T start) const {
    for (int d = 0; d < kD; ++d) {
      const T x = difference(g, d);
      start = fused(x, x, start);
    }
    return start;
  }

  // Whether the premultiplied form is as exact as the plain one.
  __device__ __forceinline__ bool can_premultiply() const {
    T norm = T(0);
    for (int d = 0; d < kD; ++d) norm = fused(y[d], y[d], norm);
    return rate * norm <= T(kLargestNorm) && rate > T(1e-30) && m < infinity(T()) &&
           a < infinity(T()) && fabs(rate * m) <= T(kLargestAddend);
  }

  __device__ __forceinline__ void premultiply() {
    const T root = sqrt(rate);
    for (int d = 0; d < kD; ++d) y[d] *= root;
    a = root * root * m;
    m = T(0);
    minus_c = -root;
  }

  // sum_d (sqrt(c) y - sqrt(c) g)^2 of a premultiplied query.
  __device__ __forceinline__ T premultiplied_energy(const T* g) const {
    T sum = T(0);
    for (int d = 0; d < kD; ++d) {
      const T x = fused(minus_c, g[d], y[d]);
      sum = fused(x, x, sum);
    }
    return sum;
  }

  __device__ void read(const Problem<T>& problem, int64_t b, int64_t i, bool valid) {
    for (int d = 0; d < kD; ++d) {
      y[d] = valid ? load(problem.y, b, i, d) : T(0);
      if (kHasScale) {
        s[kHasScale ? d : 0] = !problem.scale.data ? T(1)
                               : valid             ? load(problem.scale, b, i, d)
                                                   : T(0);
      }
    }
    rate = minus_c = T(0);
    m = a = infinity(T());
  }
};

// The best shift among records: the latent of the largest log2 w - c E, or at c = inf the least E.
template <typename T>
struct Best {
  T energy, weight;
  const T* record;
  bool has_nan;  // in an energy or a weight
};

template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ __forceinline__ void consider(const Query<T, kD, kHasScale>& query, T minus_c,
                                         const T* record, Best<T>& best) {
  const T weight = kHasExtras ? record[kD] : T(0);
  const T energy = query.energy(record, kHasExtras ? record[kD + 1] : T(0));
  best.has_nan = best.has_nan || energy != energy || weight != weight;
  // Differences are compared, because at large c the exponents themselves overflow or round.
  const bool better =
      !best.record || (kHasExtras && minus_c != -infinity(T())
                           ? fused(minus_c, energy - best.energy, weight - best.weight) > T(0)
                           : energy < best.energy);
  if (energy < infinity(T()) && weight > -infinity(T()) && better) {
    best = {energy, weight, record, best.has_nan};
  }
}

// The best of the records first, first + step, ... below last.
template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ Best<T> best_of(const Query<T, kD, kHasScale>& query, T minus_c, const T* tile,
                           int first, int last, int step) {
  Best<T> best = {T(0), T(0), nullptr, false};
  for (int i = first; i < last; i += step) {
    consider<T, kD, kHasScale, kHasExtras>(query, minus_c,
                                           tile + i * Layout<T, kD, kHasExtras>::kWidth, best);
  }
  return best;
}

// Makes a latent the shift: its exponent becomes 0, up to the rounding of a. The computed E - m of
// that latent is not exactly 0, and a corrects for it.
template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ void shift_to(Query<T, kD, kHasScale>& query, const Best<T>& best) {
  query.m = best.energy;
  if (is_steep(query.rate, query.m)) {
    query.a = infinity(T());
    query.minus_c = -best.weight;
    return;
  }
  query.minus_c = -query.rate;
  const T start = kHasExtras ? best.record[kD + 1] - query.m : -query.m;
  query.a = -fused(query.minus_c, query.energy(best.record, start), best.weight);
}

}  // namespace lebm::cuda
