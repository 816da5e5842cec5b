// How a block of latents is summed for a query, at D <= 4 and without log-weights: not at all
// (pruned), about the block's centre (pair by pair, or as a series), or from energies taken one by
// one.
//
// With u = y - s c and v = g - c for a block of centre c, and a shift m,
//
//     -beta (E - m) = -beta (|u|^2 - m) + beta (2 s u . v - s^2 . v^2)
//
// The first term is the same for the whole block; the second takes a product or two a pair. So the
// sum over a block is 2^start sum_n 2^x. Blocks are small, so x is too: it needs no running
// minimum, and is more exact than a difference of large numbers. The rounding error of
// x is one rounding of beta (|u|^2 - E). The sum is used while that number lies between -most_fall
// and kRise for the latents that count. Below, it rounds too much. If it is less for latents that
// don't count, 2^x needs its lower limit (kFloored). Outside this range warm queries take one
// pass over differences (differences.h); all others take a block's energies first (add_block).
//
// A block's energies lie within bounds that follow from its box and its range of latent energies
// (grid/reach.h). The least of the upper ends is above an energy that is attained. A block
// whose exponents are all below that energy's by log2 N and the width of a rounding is pruned: the
// pruned mass is less than the sum's rounding.
#pragma once

#include "../grid/reach.h"
#include "../series/powers.h"
#include "sums.h"

LEBM_BEGIN_TARGET

enum How : unsigned char { kPruned, kSeries, kCentred, kFloored, kOneByOne };

// A tile's queries side by side, and how the current block is summed for each of them.
template <typename T, int kD>
struct Plan {
  T y[kD][kNarrowTile], s[kD][kNarrowTile], rate[kNarrowTile], upper[kNarrowTile],
      start_shift[kNarrowTile], shift[kNarrowTile];
  T linear[kD][kNarrowTile], quadratic[kD][kNarrowTile];  // x = linear . v - quadratic . v^2
  T start[kNarrowTile], factor_minus_1[kNarrowTile], rise[kNarrowTile], fall[kNarrowTile],
      floor[kNarrowTile];
  double factor[kNarrowTile];  // 2^start, which may be below the range of a float where r or N is
                               // large
  T growth[kNarrowTile];       // of the block's series: a bound on |2 beta s u . v|
  T square_u[kNarrowTile];     // |u|^2
  int order[kNarrowTile];      // of the series that is needed
  How how[kNarrowTile];
  bool uniform;     // one rate for all
  bool some_small;  // some query is kSmall
  bool scaled;      // some s is not 1
  bool same_scale;  // one s for all
};

// Loads the plan with a tile's queries; rows beyond `count` repeat the last.
template <typename T, int kD>
static void begin_plan(Plan<T, kD>& plan, const Query<T>* queries, int64_t count) {
  plan.uniform = true;
  plan.scaled = plan.some_small = false;
  plan.same_scale = true;
  for (int64_t i = 0; i < kNarrowTile; ++i) {
    const Query<T>& q = queries[i < count ? i : count - 1];
    for (int d = 0; d < kD; ++d) {
      plan.y[d][i] = q.y[d];
      plan.s[d][i] = q.s[d];
      plan.scaled |= q.s[d] != T(1);
      plan.same_scale &= q.s[d] == queries[0].s[d];
    }
    plan.some_small |= q.regime == kSmall;
    plan.rate[i] = q.rate;
    plan.uniform &= q.rate == queries[0].rate;
    plan.upper[i] = plan.start_shift[i] = Exponent<T>::infinity;
    plan.shift[i] = T(0);
  }
}

// Finds `upper`, the least upper end of the blocks' energies, and `start_shift`, the shift to start
// with: the least |u|^2 of the blocks whose exponents about it don't underflow (starts and
// exponents are then small), and the upper end of the others, which have an energy below it.
template <typename T, int kD>
static void bound(const Grid<T>& grid, int64_t first_block, int64_t last_block, Plan<T, kD>& plan,
                  int64_t count) {
  for (int64_t q = 0; q < count; q += kLanes<T>) {
    Vec<T> upper = load(plan.upper + q), start_shift = load(plan.start_shift + q);
    for (int64_t i = first_block; i < last_block; ++i) {
      if (!(grid.r_floor[i] <= grid.r_top[i])) continue;
      const Reach<T, kD> reach(grid, i, plan, q);
      const Vec<T> end = reach.upper_end(grid, i);
      const Vec<T> fall = mul(load(plan.rate + q), reach.width);
      upper = min(upper, end);
      start_shift =
          min(start_shift, select_less(fall, broadcast(most_fall(grid)),
                                       add(reach.square, broadcast(grid.r_floor[i])), end));
    }
    store(plan.upper + q, upper);
    store(plan.start_shift + q, start_shift);
  }
}

// Calls body(q) for the vectors of queries that contain some of `list`, which ascends.
template <typename T, typename Body>
LEBM_INLINE void each_vector(const int64_t* list, int64_t count, const Body& body) {
  for (int64_t k = 0, q = -kLanes<T>; k < count; ++k) {
    if (list[k] < q + kLanes<T>) continue;
    q = list[k] / kLanes<T> * kLanes<T>;
    body(q);
  }
}

// How sums about the centre of block i are taken for query k, if at all; `most` is most_fall.
template <typename T, int kD>
LEBM_INLINE How centred_or_not(const Grid<T>& grid, int64_t i, T most, Regime regime,
                               const Plan<T, kD>& plan, int64_t k) {
  if (!(plan.rise[k] <= kRise<T>) || !(plan.start[k] <= kRise<T>) ||
      is_coarse(grid, i, plan.rate[k], plan.square_u[k]))
    return kOneByOne;
  if (plan.fall[k] <= most) return kCentred;
  // Only latents far above the least energy fall more: they hardly count. A loop of its own would
  // not pay for a leaf.
  const bool shallow = plan.rate[k] * (plan.upper[k] - plan.square_u[k]) <= most;
  return shallow && regime == kWarm && !grid.leaves ? kFloored : kOneByOne;
}

// Decides how block i is summed for the `active` queries, in ascending order. `series`: null where
// there are none, or where they can't be used.
template <typename T, int kD>
static void plan_block(const Grid<T>& grid, int64_t i, double log2_tol, bool exact,
                       const BlockSeries<T>* series, const Query<T>* queries, const Sums<T>* sums,
                       Plan<T, kD>& plan, const int64_t* active, int64_t count) {
  const bool empty = !(grid.r_floor[i] <= grid.r_top[i]);
  const T log2_N = T(__builtin_log2(double(grid.N))), threshold = T(log2_tol) - log2_N;
  const T most = most_fall(grid);
  const Vec<T> zero = broadcast(T(0));
  for (int64_t k = 0; k < count; ++k) plan.shift[active[k]] = T(sums[active[k]].shift);
  each_vector<T>(active, count, [&](int64_t q) LEBM_INLINE_LAMBDA {
    const Reach<T, kD> reach(grid, i, plan, q);
    const Vec<T> rate = load(plan.rate + q);
    store(plan.floor + q, reach.lower_end(grid, i));
    store(plan.square_u + q, reach.square);
    store(plan.rise + q, mul(rate, sub(reach.square, reach.nearest)));
    store(plan.fall + q, mul(rate, reach.width));
    const Vec<T> excess = add(sub(reach.square, load(plan.shift + q)), broadcast(grid.r_floor[i]));
    store(plan.start + q, sub(zero, mul(rate, excess)));
    Vec<T> growth = zero;
    for (int d = 0; d < kD; ++d) {
      const Vec<T> by = mul(rate, load(plan.s[d] + q));
      const Vec<T> linear = mul(add(by, by), reach.u[d]);
      store(plan.linear[d] + q, linear);
      if (!series) continue;
      const Vec<T> size = max(linear, sub(zero, linear));
      growth = fma(size, broadcast(T(kLn2 * series->width[i * kD + d])), growth);
    }
    store(plan.growth + q, growth);
  });
  for (int64_t j = 0; j < count; ++j) {
    const int64_t k = active[j];
    const Regime regime = queries[k].regime;
    const T lowest = plan.floor[k];
    plan.how[k] = kOneByOne;
    if (regime == kSkip) {
      plan.how[k] = kPruned;
    } else if (regime == kCold) {
      if (lowest > plan.upper[k]) plan.how[k] = kPruned;
    } else if (regime == kWarm || regime == kSmall) {
      if (empty || plan.rate[k] * (plan.upper[k] - lowest) < threshold) {
        plan.how[k] = kPruned;
        continue;
      }
      if (!exact) plan.how[k] = centred_or_not(grid, i, most, regime, plan, k);
      // In double, a series does not resolve sums near 1 as kSmall must.
      if (plan.how[k] == kCentred && series && (regime == kWarm || sizeof(T) == 4)) {
        plan.order[k] = order_for(plan.growth[k], plan.rate[k] * (lowest - plan.upper[k]), log2_N);
        if (plan.order[k] + 2 <= series->order) plan.how[k] = kSeries;
      }
    }
  }
}

// What sums about the centre need beside the plan, for the queries of `list`, in ascending order.
template <typename T, int kD>
static void prepare_sums(Plan<T, kD>& plan, const int64_t* list, int64_t count) {
  // 2^start as 2^(start + kLift) times a power of two, where T has less range than double.
  constexpr T kLift = sizeof(T) == 4 ? 100 : 0;
  constexpr double kUnlifted = sizeof(T) == 4 ? 0x1p-100 : 1;
  const Vec<T> zero = broadcast(T(0)), lift = broadcast(kLift), below = broadcast(-kLift);
  alignas(64) T lifted[kNarrowTile];
  each_vector<T>(list, count, [&](int64_t q) LEBM_INLINE_LAMBDA {
    // Other queries of the vector may be out of range.
    const Vec<T> start = min(load(plan.start + q), broadcast(kRise<T>));
    store(lifted + q, factor_of<T>(add(start, select_less(start, below, lift, zero))));
    if (plan.some_small) store(plan.factor_minus_1 + q, exp2m1_of<T>(start));
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(plan.s[d] + q);
      store(plan.quadratic[d] + q, mul(mul(load(plan.rate + q), s), s));
    }
  });
  for (int64_t j = 0; j < count; ++j) {
    const int64_t k = list[j];
    plan.factor[k] = plan.start[k] < -kLift ? double(lifted[k]) * kUnlifted : double(lifted[k]);
  }
}

LEBM_END_TARGET
