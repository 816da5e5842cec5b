// A tile of latents in shared memory, D <= 4, and the energies of a query with them.
//
// A latent is a record of kWidth numbers: g[D], then with kHasExtras log2 w and r. Records lie in
// groups that are read at once, 16 bytes where they can be. One whose log2 w is -inf is dropped and
// has g = r = 0, whatever it decodes to.
#pragma once

#include "task.cuh"

namespace lebm::cuda {

constexpr int kTileBytes = 16384;

template <typename T, int kD, bool kHasExtras>
struct Layout {
  static constexpr int kUsed = kD + (kHasExtras ? 2 : 0);
  static constexpr int kWidth = kUsed == 3 ? 4 : kUsed == 5 ? 6 : kUsed;
  static constexpr int kGroup = kWidth == 1 ? 4 : kWidth == 2 ? 2 : 1;  // records read at once
  static constexpr int kTile = kTileBytes / int(sizeof(T)) / kWidth / kSample * kSample;
  static constexpr int kNumbers = kTile * kWidth;
};

template <typename T, int kCount>
struct alignas(kCount * sizeof(T) % 16 == 0 ? 16 : sizeof(T) * (kCount % 2 == 0 ? 2 : 1)) Packed {
  T at[kCount];
};

// Copies `count` latents to the tile: those from `first` on, or with `of` > 0 such as are scattered
// over the first `of`, one from each of `count` parts, at a place in it that no grid repeats.
template <typename T, int kD, bool kHasExtras>
__device__ void stage(const RowTask<T>& task, int64_t b, int64_t first, int64_t of, int count,
                      T* tile) {
  using L = Layout<T, kD, kHasExtras>;
  const Problem<T>& problem = task.problem;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const double place = i + double(uint32_t(i) * 2654435769u) * 0x1p-32;
    const int64_t n = of > 0 ? min(int64_t(place * double(of) / count), of - 1) : first + i;
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

// The forms of an exponent -c (E - m) + a: plain; steep, where E is taken first and m from it; and
// scaled, which takes an instruction less: a' - sum_d (sqrt(c) y - sqrt(c) g)^2.
enum class Form { kPlain, kSteep, kScaled };

// The largest c |y|^2 and the largest |a'| of scaled queries: sqrt(c) y is rounded, as if y were,
// and a g near it does not make up for that as it does in y - g.
constexpr double kLargestScaled = 30.0, kLargestAddend = 128.0;

// A query: y and s, c = beta log2(e), the reference (m, a), and -c. Without a reference m = inf.
// Then, and where it is steep (see is_steep), a = inf, which makes every sum fail the test of its
// size: what is done then is slow and knows better. A steep query has its real a in the place of
// -c. A scaled one has sqrt(c) y, and -sqrt(c) in the place of -c; its m is 0, and a is c m.
template <typename T, int kD, bool kHasScale>
struct Query {
  T y[kD], s[kHasScale ? kD : 1];
  T rate, m, a, minus_c;

  __device__ __forceinline__ bool has_reference() const { return m < infinity(T()); }
  __device__ __forceinline__ T addend() const { return a < infinity(T()) ? a : minus_c; }

  __device__ __forceinline__ T difference(const T* g, int d) const {
    return kHasScale ? fused(-s[kHasScale ? d : 0], g[d], y[d]) : y[d] - g[d];
  }

  // start + sum_d (y - s g)^2; with start = -m the reference costs nothing.
  __device__ __forceinline__ T energy(const T* g, T start) const {
    for (int d = 0; d < kD; ++d) {
      const T x = difference(g, d);
      start = fused(x, x, start);
    }
    return start;
  }

  // Whether the scaled form is as good as the plain one.
  __device__ __forceinline__ bool can_be_scaled() const {
    T norm = T(0);
    for (int d = 0; d < kD; ++d) norm = fused(y[d], y[d], norm);
    return rate * norm <= T(kLargestScaled) && rate > T(1e-30) && m < infinity(T()) &&
           a < infinity(T()) && fabs(rate * m) <= T(kLargestAddend);
  }

  __device__ __forceinline__ void be_scaled() {
    const T root = sqrt(rate);
    for (int d = 0; d < kD; ++d) y[d] *= root;
    a = root * root * m;
    m = T(0);
    minus_c = -root;
  }

  // sum_d (sqrt(c) y - sqrt(c) g)^2 of a scaled query.
  __device__ __forceinline__ T scaled_energy(const T* g) const {
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

// The best reference among records: the largest log2 w - c E, or at c = inf the least E.
template <typename T>
struct Best {
  T energy, weight;
  const T* record;
  bool spoilt;  // some energy or weight is not a number
};

template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ __forceinline__ void consider(const Query<T, kD, kHasScale>& query, T minus_c,
                                         const T* record, Best<T>& best) {
  const T weight = kHasExtras ? record[kD] : T(0);
  const T energy = query.energy(record, kHasExtras ? record[kD + 1] : T(0));
  best.spoilt = best.spoilt || energy != energy || weight != weight;
  // By differences: at large c the exponents themselves say nothing.
  const bool better =
      !best.record || (kHasExtras && minus_c != -infinity(T())
                           ? fused(minus_c, energy - best.energy, weight - best.weight) > T(0)
                           : energy < best.energy);
  if (energy < infinity(T()) && weight > -infinity(T()) && better) {
    best = {energy, weight, record, best.spoilt};
  }
}

// The best of records first, first + step ... below last.
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

// Makes a latent the reference: its exponent becomes 0, but for the rounding of a. Its energy about
// m is not exactly 0, which a takes up.
template <typename T, int kD, bool kHasScale, bool kHasExtras>
__device__ void refer_to(Query<T, kD, kHasScale>& query, const Best<T>& best) {
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
