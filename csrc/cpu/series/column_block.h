// A block of latents in the column pass by series (see columns.h), and its bounds for a tile of
// queries.
#pragma once

#include "../grid/reach.h"
#include "column_queries.h"

LEBM_BEGIN_TARGET

// Orders go up in steps: queries of the same step are summed together.
constexpr int kOrderStep = 3;
constexpr int kOrderSteps = kSeriesStride / kOrderStep;

// The step of a query's order that makes the derivative exact to `bits` of each term where |a . x|
// < (i + 1) / 4; kNoOrder where rounding would show, see order_for.
struct OrderSteps {
  unsigned char at[OrderTable::kReaches];
};

constexpr OrderSteps order_steps(double bits, double most_reach) {
  OrderSteps steps{};
  for (int i = 0; i < OrderTable::kReaches; ++i) {
    const double reach = double(i + 1) / 4;
    const int order = kOrderTable.at[i][int((bits + reach * kLog2E) / 4) + 1];
    const bool serves = reach <= most_reach && order < kMostOrder;
    steps.at[i] = serves ? (unsigned char)(order / kOrderStep + 1) : (unsigned char)kNoOrder;
  }
  return steps;
}

template <typename T>
constexpr OrderSteps kFarSteps = sizeof(T) == 4 ? order_steps(26, 6) : order_steps(55, 1.25);
template <typename T>
constexpr OrderSteps kNearSteps = sizeof(T) == 4 ? order_steps(36, 6) : order_steps(0, 0);

// A block of latents, for queries of one rate and scale.
template <typename T, int kD>
struct ColumnBlock {
  T centre[kD], s[kD], side[kD], per_u[kD];  // |a . x| <= sum per_u |u|
  double width[kD], slope[kD], per_a[kD];    // a = per_a u = slope s u
  T rate, r_floor, radius;
  T near_square;  // up to this |u|^2, a latent may be at the query's place
  T most_square;  // below this |u|^2, exponents about the centre are small and exact enough
  bool serves_near;

  ColumnBlock(const Grid<T>& grid, int64_t i, const SeriesOf<T>& of)
      : rate(of.rate), r_floor(grid.r_floor[i]) {
    T square = T(0);
    for (int d = 0; d < kD; ++d) {
      const T half = grid.half[i * kD + d];
      centre[d] = grid.centre[i * kD + d];
      s[d] = of.s[d];
      side[d] = (s[d] < 0 ? -s[d] : s[d]) * half;
      width[d] = series_width(half, s[d], of.beta);
      slope[d] = 2 * kLn2 * double(rate) * width[d];
      per_a[d] = slope[d] * double(s[d]);
      per_u[d] = T(per_a[d] < 0 ? -per_a[d] : per_a[d]);
      square += side[d] * side[d];
    }
    radius = T(__builtin_sqrt(double(square)));
    // As in columns/centred.h.
    near_square = T(2.25) * square;
    // In a block of colder or wider energies, such a latent may have all of the block's visible
    // mass.
    serves_near = sizeof(T) == 4 && rate * (square + (grid.r_top[i] - r_floor)) < T(14);
    const T low = r_floor, high = grid.r_top[i];
    const T energies = (low > 0 ? low : -low) + (high > 0 ? high : -high);
    const T fine = T(1.0 / 64) / (rate * Exponent<T>::epsilon) - energies;  // as in is_coarse
    const T most = (most_fall(grid) / (rate * radius) - radius) / 2;
    most_square = most > 0 ? most * most : T(0);
    if (fine < most_square) most_square = fine;
  }
};

// Some queries, and the block's bounds for each.
template <typename T, int kD>
struct MeasuredQueries {
  const T *y[kD], *shift, *log2_mass;
  T s[kD][kColumnTile];
  T square[kColumnTile], highest[kColumnTile], reach[kColumnTile], factor[kColumnTile];

  explicit MeasuredQueries(const SeriesOf<T>& of) {
    for (int d = 0; d < kD; ++d) fill(s[d], kColumnTile, of.s[d]);
  }

  // Loads the queries in `list` from `first` on, or without a list the queries from `first` on.
  void take(const ColumnQueries<T>& all, const uint32_t* list, int64_t first, int64_t count) {
    for (int64_t j = 0; list && j < count; ++j) {
      const int64_t q = list[first + j];
      for (int d = 0; d < kD; ++d) own_y_[d][j] = all.y[d][q];
      own_shift_[j] = all.shift[q];
      own_log2_mass_[j] = all.log2_mass[q];
    }
    for (int d = 0; d < kD; ++d) y[d] = list ? own_y_[d] : all.y[d] + first;
    shift = list ? own_shift_ : all.shift + first;
    log2_mass = list ? own_log2_mass_ : all.log2_mass + first;
  }

  // The arithmetic of measure_chunk.
  void measure(const Grid<T>& grid, int64_t i, const ColumnBlock<T, kD>& block, int64_t count) {
    const Vec<T> zero = broadcast(T(0)), rate = broadcast(block.rate);
    for (int64_t j = 0; j < count; j += kLanes<T>) {
      const Reach<T, kD> from(grid, i, *this, j);
      Vec<T> bound = zero;
      for (int d = 0; d < kD; ++d)
        bound = fma(max(from.u[d], sub(zero, from.u[d])), broadcast(block.per_u[d]), bound);
      const Vec<T> m = load(shift + j), bits = load(log2_mass + j);
      const Vec<T> excess = add(sub(from.square, m), broadcast(block.r_floor));
      store(square + j, from.square);
      store(reach + j, bound);
      store(highest + j, fma(rate, sub(m, from.lower_end(grid, i)), sub(zero, bits)));
      store(factor + j, factor_of<T>(sub(sub(zero, mul(rate, excess)), bits)));
    }
  }

 private:
  T own_y_[kD][kColumnTile], own_shift_[kColumnTile], own_log2_mass_[kColumnTile];
};

LEBM_END_TARGET
