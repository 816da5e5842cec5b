// Which blocks can matter to a tile of queries that lie close together, and an order in which
// queries lie close together.
//
// Energies between a box of queries y and a box of s g lie between the squares of the least and the
// largest distance of the boxes, plus r.
#pragma once

#include "../../problem.h"
#include "plan.h"

LEBM_BEGIN_TARGET

// The box around the y of some queries, and their scale.
struct QueryBox {
  double low[4], high[4], scale[4];
};

struct Range {
  double low, high;
};

// Bounds on the squared distance between the queries of a box and s g, g in [low, high].
template <typename T, int kD>
LEBM_INLINE Range distances(const QueryBox& box, const T* low, const T* high) {
  Range result{0, 0};
  for (int d = 0; d < kD; ++d) {
    const double a = box.scale[d] * low[d], b = box.scale[d] * high[d];
    double upper = a > b ? a : b, lower = a < b ? a : b;
    if (!kFused && box.scale[d] != 1) {
      // Energies contain s g rounded.
      const double rounding = Exponent<T>::epsilon * (upper > -lower ? upper : -lower);
      upper += rounding;
      lower -= rounding;
    }
    const double under = box.low[d] - upper, over = lower - box.high[d];
    const double gap = under > over ? under : over;
    const double far = under < over ? -under : -over;
    if (gap > 0) result.low += gap * gap;
    result.high += far * far;
  }
  return result;
}

// Fills `blocks` with those of [first, last) that can matter to one of the queries; returns their
// number.
template <typename T, int kD>
static int64_t choose_blocks(const Grid<T>& grid, int64_t first, int64_t last, double log2_tol,
                             const Plan<T, kD>& plan, const Query<T>* queries, int64_t count,
                             int64_t* blocks) {
  QueryBox box;
  double rate = __builtin_inf();  // the least
  bool prunes = plan.same_scale;
  for (int d = 0; d < kD; ++d) {
    box.low[d] = __builtin_inf();
    box.high[d] = -__builtin_inf();
    box.scale[d] = queries[0].s[d];
  }
  for (int64_t k = 0; k < count; ++k) {
    const Query<T>& q = queries[k];
    if (q.regime == kSkip) continue;
    prunes &= q.regime == kWarm || q.regime == kSmall || q.regime == kCold;
    if (q.regime != kCold && q.rate < rate) rate = q.rate;
    for (int d = 0; d < kD; ++d) {
      if (q.y[d] < box.low[d]) box.low[d] = q.y[d];
      if (q.y[d] > box.high[d]) box.high[d] = q.y[d];
    }
  }
  // Rounding error of a bound, and of the energies it is compared with; see Reach.
  auto rounding = [&](double square, int64_t i) {
    const double r = grid.r_floor[i];
    return 16 * double(Exponent<T>::epsilon) * (square + (r < 0 ? -r : r));
  };
  // An upper bound on an energy that every query attains somewhere.
  double upper = __builtin_inf();
  for (int64_t i = first; prunes && i < last; ++i) {
    if (!(grid.r_floor[i] <= grid.r_top[i])) continue;
    const Range range = distances<T, kD>(box, grid.low + i * kD, grid.high + i * kD);
    const double high = range.high + grid.r_floor[i] + rounding(range.high, i);
    upper = high < upper ? high : upper;
  }
  const double margin = (__builtin_log2(double(grid.N)) - log2_tol) / rate;
  int64_t chosen = 0;
  for (int64_t i = first; i < last; ++i) {
    if (prunes) {
      const Range range = distances<T, kD>(box, grid.low + i * kD, grid.high + i * kD);
      const double low = range.low + grid.r_floor[i] - rounding(range.low, i);
      if (!(grid.r_floor[i] <= grid.r_top[i]) || low > upper + margin) continue;
    }
    blocks[chosen++] = i;
  }
  return chosen;
}

// Whether sorting the queries would let more blocks be pruned: the energies differ enough, and the
// given tiles are not compact.
template <typename T>
static bool sorts_queries(const Problem<T>& p, int64_t b, const Grid<T>& grid, double log2_tol) {
  if (p.D > 3 || grid.weighted || grid.has_nan || grid.num_blocks < 16 || p.M < 8 * kNarrowTile ||
      p.M >= int64_t(1) << 32)
    return false;
  const double margin = __builtin_log2(double(grid.N)) - log2_tol;
  const double rate = double(*p.beta.at(b, p.M / 2)) * kLog2E;
  double of_grid = 0;
  for (int64_t d = 0; d < p.D; ++d) {
    const double s = p.scale.data ? double(p.scale.at(b, p.M / 2)[d * p.scale.stride[2]]) : 1.0;
    const double side = s * (double(grid.box_high[d]) - double(grid.box_low[d]));
    of_grid += side * side;
  }
  if (!(rate * of_grid > 2 * margin)) return false;
  const int64_t tiles = p.M / kNarrowTile, step = tiles / 64 > 0 ? tiles / 64 : 1;
  double of_tiles = 0, seen = 0, box = 0, box_low[3], box_high[3];
  for (int64_t d = 0; d < p.D; ++d) {
    box_low[d] = __builtin_inf();
    box_high[d] = -__builtin_inf();
  }
  for (int64_t t = 0; t < tiles; t += step) {
    for (int64_t d = 0; d < p.D; ++d) {
      double low = __builtin_inf(), high = -__builtin_inf();
      for (int64_t m = t * kNarrowTile; m < (t + 1) * kNarrowTile; ++m) {
        const double y = p.y.at(b, m)[d * p.y.stride[2]];
        if (y < low) low = y;
        if (y > high) high = y;
      }
      if (!(low <= high)) continue;
      of_tiles += (high - low) * (high - low);
      box_low[d] = low < box_low[d] ? low : box_low[d];
      box_high[d] = high > box_high[d] ? high : box_high[d];
    }
    seen += 1;
  }
  for (int64_t d = 0; d < p.D; ++d) box += (box_high[d] - box_low[d]) * (box_high[d] - box_low[d]);
  return of_tiles / seen > 4 * box * __builtin_pow(double(tiles), -2.0 / double(p.D));
}

LEBM_END_TARGET
