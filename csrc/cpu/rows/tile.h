// A tile of queries: its scratch memory, and the regime of each query in the first pass.
#pragma once

#include "../../problem.h"
#include "../series/layers.h"
#include "slope.h"
#include "sums.h"
#include "wide.h"

LEBM_BEGIN_TARGET

// Everything that a pass over some queries of one grid needs.
template <typename T>
struct Pass {
  const Problem<T>* problem;
  const RowOutputs<T>* out;
  const Grid<T>* grid;
  int64_t b;
  unsigned char* regime;  // [M], a Regime each: that of the query's next pass
  const int64_t* query;   // [count] queries of this pass, or null for all
  int64_t count;
  const Layers<T>* layers;
  Level level;
  double log2_tol;      // log2 of the fraction of the sum that may be pruned
  bool first;           // the first pass, which finds m and the moments
  int64_t settle = -1;  // the place of the latent for settle_gap, or -1

  int64_t query_at(int64_t i) const { return query ? query[i] : i; }
};

// The width of a range that contains every energy of a query, from the grid's bounding box; at most
// the largest number of T.
template <typename T>
static double energy_range(const Grid<T>& grid, const T* y, const T* s) {
  double low = 0, high = 0;
  for (int64_t d = 0; d < grid.D; ++d) {
    const double a = double(y[d]) - double(s[d]) * grid.box_low[d];
    const double b = double(y[d]) - double(s[d]) * grid.box_high[d];
    const double a2 = a * a, b2 = b * b;
    high += a2 > b2 ? a2 : b2;
    if (a * b > 0) low += a2 < b2 ? a2 : b2;
  }
  const double range = (high - low) + (grid.r_high - grid.r_low);
  return range < kMost<T> ? range : kMost<T>;
}

// The largest unit of a hot query: a rounding of its energies times this is in T's range.
template <typename T>
constexpr double kMostUnit = sizeof(T) == 4 ? 0x1p100 : 0x1p996;

template <typename T>
static Regime first_regime(const Grid<T>& grid, const Query<T>& q) {
  if (grid.has_nan || !(q.beta >= 0)) return kSkip;
  for (int64_t d = 0; d < grid.D; ++d)
    if (!is_finite(q.y[d]) || !is_finite(q.s[d])) return kSkip;
  if (is_cold<T>(q.beta)) return kCold;
  if (q.beta == 0) return kHot;
  if (grid.has_infinite) return kWarm;
  const double range = q.beta * energy_range(grid, q.y, q.s);
  // Rounding hides the second-order term -beta Var/2, and products may underflow.
  if (range < (sizeof(T) == 4 ? 1e-8 : 1e-17)) return kHot;
  // Up to here a warm query would often need a second pass as kSmall.
  return range < 8 ? kSmall : kWarm;
}

LEBM_INLINE int64_t tile_size(int64_t D) { return D <= kNarrow ? kNarrowTile : kWideTile; }

// Scratch memory of one tile of queries.
template <typename T>
struct Tile {
  T *y, *s, *energy;
  Query<T>* queries;
  Sums<T>* sums;
  Vectors* vectors;
  double* moments;
  void* block;  // where streamed blocks are unpacked

  static int64_t energies(int64_t D, int64_t block) {
    return D <= kNarrow ? block : WideScratch<T>::count(D, block);
  }
  static size_t bytes(int64_t D, int64_t block) {
    const int64_t tile = tile_size(D);
    return sizeof(T) * size_t(2 * tile * D + energies(D, block)) +
           size_t(tile) * (sizeof(Query<T>) + sizeof(Sums<T>) + sizeof(Vectors) +
                           sizeof(double) * 3 * size_t(D)) +
           64;
  }
  Tile(void* memory, int64_t D, int64_t size) {
    const int64_t tile = tile_size(D);
    sums = static_cast<Sums<T>*>(memory);
    vectors = reinterpret_cast<Vectors*>(sums + tile);
    queries = reinterpret_cast<Query<T>*>(vectors + tile);
    moments = reinterpret_cast<double*>(queries + tile);
    y = reinterpret_cast<T*>(moments + 3 * tile * D);
    s = y + tile * D;
    energy = s + tile * D;
    block = energy + energies(D, size);
  }
};

template <typename T>
static void load_tile(const Pass<T>& pass, int64_t first, int64_t count, Tile<T>& tile) {
  const Problem<T>& p = *pass.problem;
  const int64_t D = p.D, padded = in_groups(count);
  for (int64_t i = 0; i < padded; ++i) {
    const int64_t m = pass.query_at(first + (i < count ? i : count - 1));
    for (int64_t d = 0; d < D; ++d) {
      tile.y[i * D + d] = p.y.at(pass.b, m)[d * p.y.stride[2]];
      tile.s[i * D + d] = p.scale.data ? p.scale.at(pass.b, m)[d * p.scale.stride[2]] : T(1);
    }
    if (i >= count) continue;
    Query<T>& q = tile.queries[i];
    q.y = tile.y + i * D;
    q.s = tile.s + i * D;
    q.beta = *p.beta.at(pass.b, m);
    q.rate = T(q.beta * kLog2E);
    q.regime = pass.first ? first_regime(*pass.grid, q) : Regime(pass.regime[m]);
    const double* state = pass.out->state + kStateSize * (pass.b * p.M + m);
    q.gap = pass.first ? T(0) : T(state[kStateGap]);
    q.unit = q.ratio = T(1);
    if (q.regime == kHot) {
      const double range = energy_range(*pass.grid, q.y, q.s);
      q.unit = range * kMostUnit<T> > kTermLift ? T(kTermLift / range) : T(kMostUnit<T>);
    } else if (q.regime == kSlope) {
      set_unit(state[kStateShift], state[kStateGap], q);
    }
    q.square_scale = D <= kNarrow ? T(0) : largest_square(q.s, D);
    double* moments = tile.moments + 3 * i * D;
    const bool sum_only = pass.level == kSumOnly;
    tile.vectors[i] = {sum_only || !pass.out->slope_y ? nullptr : moments,
                       sum_only || !pass.out->slope_scale ? nullptr : moments + D,
                       sum_only || !pass.out->mean ? nullptr : moments + 2 * D};
    clear(tile.sums[i], tile.vectors[i], D, pass.first ? __builtin_inf() : state[kStateShift],
          pass.first && pass.out->index);
  }
}

LEBM_END_TARGET
