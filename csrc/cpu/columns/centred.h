// The column pass at D <= 4 without log-weights, about each block's centre c, as rows/centred.h
// does for rows. With u = y - s c and v = g - c,
//
//     G p = grad 2^start 2^x,   x = linear . v - rate |v|^2,   summed over queries [chunk] for
//     latents [block]
//
// x is a sum of small numbers. The gradient's difference y - s g must vanish where y = s g.
#pragma once

#include "../grid/reach.h"
#include "differences.h"
#include "treat.h"

LEBM_BEGIN_TARGET

// Queries of a chunk side by side, the block's bounds for each, and the queries whose pairs are
// taken one by one.
template <typename T, int kD>
struct CentredChunk {
  T y[kD][kChunk], s[kD][kChunk], u[kD][kChunk], rate[kChunk], shift[kChunk], log2_mass[kChunk];
  T square[kChunk], rise[kChunk], fall[kChunk], floor[kChunk], start[kChunk], factor[kChunk];
  // The queries that are summed about the centre, packed.
  int64_t centred;
  T at_y[kD][kChunk], at_s[kD][kChunk], linear[kD][kChunk], quadratic[kD][kChunk];
  T minus_rate[kChunk], grad[kChunk], lowest[kChunk];  // p counts as 0 where x <= lowest
  // The others, as differences.h takes them.
  int64_t others;
  DifferenceColumn<T, kD> other[kChunk];
};

// The block's bounds for the queries [first, first + count), in the arithmetic of rows/plan.h: beta
// |u|^2 may be so large that its last bit matters.
template <typename T, int kD>
static void measure_chunk(const ColumnTask<T>& task, int64_t i, int64_t first, int64_t count,
                          CentredChunk<T, kD>& chunk) {
  const Grid<T>& grid = *task.grid;
  for (int64_t k = 0; k < (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>; ++k) {
    const int64_t q = first + (k < count ? k : count - 1);
    for (int d = 0; d < kD; ++d) {
      chunk.y[d][k] = task.y[q * kD + d];
      chunk.s[d][k] = task.s[q * kD + d];
    }
    chunk.rate[k] = task.queries[q].rate;
    chunk.shift[k] = task.queries[q].shift;
    chunk.log2_mass[k] = task.queries[q].log2_mass;
  }
  const Vec<T> r_floor = broadcast(grid.r_floor[i]);
  for (int64_t k = 0; k < count; k += kLanes<T>) {
    const Reach<T, kD> reach(grid, i, chunk, k);
    const Vec<T> rate = load(chunk.rate + k);
    for (int d = 0; d < kD; ++d) store(chunk.u[d] + k, reach.u[d]);
    store(chunk.square + k, reach.square);
    store(chunk.rise + k, mul(rate, sub(reach.square, reach.nearest)));
    store(chunk.fall + k, mul(rate, reach.width));
    store(chunk.floor + k, reach.lower_end(grid, i));
    const Vec<T> excess = add(sub(reach.square, load(chunk.shift + k)), r_floor);
    const Vec<T> about_shift = sub(broadcast(T(0)), mul(rate, excess));
    const Vec<T> start = sub(about_shift, load(chunk.log2_mass + k));
    store(chunk.start + k, start);
    store(chunk.factor + k, factor_of<T>(start));
  }
}

// How block i is summed for the queries [first, last), at most kChunk.
template <typename T, int kD>
static void plan_chunk(const ColumnTask<T>& task, int64_t i, int64_t first, int64_t last,
                       CentredChunk<T, kD>& chunk) {
  const Grid<T>& grid = *task.grid;
  const T threshold = T(task.log2_tol - __builtin_log2(double(grid.N)));
  const T most = most_fall(grid);
  measure_chunk(task, i, first, last - first, chunk);
  chunk.centred = chunk.others = 0;
  for (int64_t k = 0; k < last - first; ++k) {
    const ColumnQuery<T>& query = task.queries[first + k];
    // p <= 2^threshold would not show in a latent's gradient.
    if (query.rate * (query.shift - chunk.floor[k]) - query.log2_mass < threshold) continue;
    if (grid.has_few_latents() || chunk.rise[k] > kRise<T> || chunk.fall[k] > most ||
        is_coarse(grid, i, query.rate, chunk.square[k])) {
      const int64_t q = first + k;
      chunk.other[chunk.others++] = {query, task.y + q * kD, task.s + q * kD};
      continue;
    }
    const int64_t at = chunk.centred++;
    chunk.minus_rate[at] = -query.rate;
    chunk.grad[at] = query.grad * chunk.factor[k];
    chunk.lowest[at] = Exponent<T>::lowest - chunk.start[k];
    for (int d = 0; d < kD; ++d) {
      const T by = query.rate * chunk.s[d][k];
      chunk.at_y[d][at] = chunk.y[d][k];
      chunk.at_s[d][at] = chunk.s[d][k];
      chunk.linear[d][at] = (by + by) * chunk.u[d][k];
      chunk.quadratic[d][at] = by * chunk.s[d][k];
    }
  }
  // These are read with the last queries, and not used.
  for (int64_t at = chunk.centred; at < kChunk && at <= (chunk.centred | (kLanes<T> - 1)); ++at) {
    chunk.minus_rate[at] = chunk.grad[at] = chunk.lowest[at] = T(0);
    for (int d = 0; d < kD; ++d)
      chunk.at_y[d][at] = chunk.at_s[d][at] = chunk.linear[d][at] = chunk.quadratic[d][at] = T(0);
  }
}

// The numbers of a query that the pair loop reads. `pull` and `weight` are y and s near the block,
// grad s u and grad s^2 far from it.
template <typename T, int kD>
struct CentredColumn {
  T rate, grad, lowest, linear[kD], quadratic[kD], pull[kD], weight[kD];
};

// Queries [first, last) against kL vectors of latents from j on, added to r and sum_g.
//
// Far from the block, u and v replace the difference: y - s g = u - s v. That takes one operation a
// pair and dimension, and no product with grad: v is multiplied at the end. For a query near
// a latent, this form has an error of one rounding of the block's size: see is_near.
template <typename T, int kD, bool kHasScale, bool kFloor, bool kNear, int kL>
LEBM_INLINE void centred_pairs(const Exp2<T>& power, const CentredColumn<T, kD>* queries,
                               int64_t first, int64_t last, const Vec<T> (&square)[kL],
                               const Vec<T> (&v)[kD][kL], const T* g, int64_t size, Vec<T> (&r)[kL],
                               Vec<T> (&sum_g)[kD][kL]) {
  Vec<T> sum_r[kL], pulls[kD][kL], weights[kHasScale ? kD : 1][kL];
  for (int i = 0; i < kL; ++i) {
    sum_r[i] = broadcast(T(0));
    for (int d = 0; d < kD; ++d) pulls[d][i] = broadcast(T(0));
    for (int d = 0; kHasScale && d < kD; ++d) weights[d][i] = broadcast(T(0));
  }
  for (int64_t q = first; q < last; ++q) {
    const CentredColumn<T, kD>& query = queries[q];
    Vec<T> x[kL], p[kL], scale[kL];
    for (int i = 0; i < kL; ++i) x[i] = kFloor ? mul(broadcast(query.rate), square[i]) : square[i];
    for (int d = 0; d < kD; ++d) {
      const Vec<T> linear = broadcast(query.linear[d]);
      for (int i = 0; i < kL; ++i) {
        const Vec<T> slope =
            kHasScale ? fnma(broadcast(query.quadratic[d]), v[d][i], linear) : linear;
        const bool is_first = kHasScale && !kFloor && d == 0;  // no square
        x[i] = is_first ? mul(v[d][i], slope) : fma(v[d][i], slope, x[i]);
      }
    }
    if constexpr (kFloor) {
      power.template bounded<true>(query.lowest, x, p, scale);
    } else {
      power(x, p, scale);
    }
    const Vec<T> grad = broadcast(query.grad);
    for (int i = 0; i < kL; ++i) {
      p[i] = Exp2<T>::value(p[i], scale[i]);
      if constexpr (kNear) {
        p[i] = mul(p[i], grad);
        sum_r[i] = add(sum_r[i], p[i]);
      } else {
        sum_r[i] = fma(p[i], grad, sum_r[i]);
      }
    }
    for (int d = 0; d < kD; ++d) {
      const Vec<T> pull = broadcast(query.pull[d]), weight = broadcast(query.weight[d]);
      for (int i = 0; i < kL; ++i) {
        if constexpr (kNear) {
          const Vec<T> at = load(g + d * size + i * kLanes<T>);
          const Vec<T> difference = kHasScale ? fnma(weight, at, pull) : sub(pull, at);
          pulls[d][i] = fma(kHasScale ? mul(p[i], weight) : p[i], difference, pulls[d][i]);
        } else {
          pulls[d][i] = fma(p[i], pull, pulls[d][i]);
          if constexpr (kHasScale) weights[d][i] = fma(p[i], weight, weights[d][i]);
        }
      }
    }
  }
  for (int i = 0; i < kL; ++i) {
    r[i] = add(r[i], sum_r[i]);
    for (int d = 0; d < kD; ++d) {
      const Vec<T> sum =
          kNear ? pulls[d][i] : fnma(v[d][i], kHasScale ? weights[d][i] : sum_r[i], pulls[d][i]);
      sum_g[d][i] = add(sum_g[d][i], sum);
    }
  }
}

template <typename T, int kD, bool kHasScale, bool kFloor>
static void centred_chunk(const Grid<T>& grid, const Block<T>& block,
                          const CentredChunk<T, kD>& chunk, const ColumnSums<T>& sums) {
  constexpr T kSteps = Exp2<T>::kSteps;
  constexpr int kL = kD <= 2 ? 2 : 1;
  const int64_t size = grid.block, b = block.first / size, count = chunk.centred;
  const T r_floor = grid.r_floor[b];
  if constexpr (kSpecialised && kHasScale && kFloor) {
    if (grid.whole[b] && r_floor == grid.r_top[b])
      return centred_chunk<T, kD, true, false>(grid, block, chunk, sums);
  } else if constexpr (!kHasScale && !kFloor) {
    // If all rates are one, it is part of the square.
    for (int64_t k = 1; k < count; ++k) {
      if (chunk.minus_rate[k] != chunk.minus_rate[0])
        return centred_chunk<T, kD, false, true>(grid, block, chunk, sums);
    }
  }
  // Beyond 1.5 radii, latents are at least half a radius away.
  T u[kD][kChunk], beyond[kChunk];
  for (int64_t k = 0; k < count; k += kLanes<T>) {
    Vec<T> square = broadcast(T(0)), radius = broadcast(T(0));
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(chunk.at_s[d] + k), half = mul(s, broadcast(grid.half[b * kD + d]));
      const Vec<T> from = fnma(s, broadcast(block.centre[d]), load(chunk.at_y[d] + k));
      store(u[d] + k, from);
      square = fma(from, from, square);
      radius = fma(half, half, radius);
    }
    store(beyond + k, fnma(broadcast(T(2.25)), radius, square));
  }
  // Far queries fill the array from the front, near ones from the back.
  CentredColumn<T, kD> queries[kChunk];
  int64_t far = 0, near = count;
  for (int64_t k = 0; k < count; ++k) {
    const bool is_far = beyond[k] > 0;
    CentredColumn<T, kD>& query = queries[is_far ? far : near - 1];
    far += is_far;
    near -= !is_far;
    query.rate = kSteps * chunk.minus_rate[k];
    query.grad = T(double(chunk.grad[k]) * Exp2<T>::kUnit);
    const T lowest = kSteps * chunk.lowest[k];
    query.lowest = lowest > Exp2<T>::kNormal ? lowest : Exp2<T>::kNormal;
    for (int d = 0; d < kD; ++d) {
      const T s = chunk.at_s[d][k], by = query.grad * s;
      query.linear[d] = kSteps * chunk.linear[d][k];
      query.quadratic[d] = kSteps * chunk.quadratic[d][k];
      query.pull[d] = is_far ? by * u[d][k] : chunk.at_y[d][k];
      query.weight[d] = is_far ? by * s : s;
    }
  }
  const Exp2<T> power;
  for (int64_t j = 0; j < size; j += kL * kLanes<T>) {
    Vec<T> v[kD][kL], sum_g[kD][kL], r[kL], square[kL];
    for (int i = 0; i < kL; ++i) {
      const int64_t n = j + i * kLanes<T>;
      r[i] = broadcast(T(0));
      square[i] = kFloor ? sub(load(block.r + n), broadcast(r_floor)) : broadcast(T(0));
      for (int d = 0; d < kD; ++d) {
        v[d][i] = load(block.v + d * size + n);
        sum_g[d][i] = broadcast(T(0));
        if (!kHasScale) square[i] = fma(v[d][i], v[d][i], square[i]);
      }
      if (!kFloor) square[i] = mul(square[i], broadcast(kSteps * chunk.minus_rate[0]));
    }
    centred_pairs<T, kD, kHasScale, kFloor, false>(power, queries, 0, far, square, v, block.g + j,
                                                   size, r, sum_g);
    centred_pairs<T, kD, kHasScale, kFloor, true>(power, queries, near, count, square, v,
                                                  block.g + j, size, r, sum_g);
    for (int i = 0; i < kL; ++i) {
      store(sums.r + j + i * kLanes<T>, r[i]);
      for (int d = 0; d < kD; ++d) store(sums.g + d * size + j + i * kLanes<T>, sum_g[d][i]);
    }
  }
  add_chunk(kD, size, sums);
}

// Queries [first, last), at most kChunk, all warm, against a block without log-weights.
template <typename T, int kD>
static void finite_queries_centred(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                                   int64_t last, CentredChunk<T, kD>& chunk, T* scratch,
                                   const ColumnSums<T>& sums) {
  const Grid<T>& grid = *task.grid;
  const int64_t i = block.first / grid.block;
  if (!(grid.r_floor[i] <= grid.r_top[i])) return;
  for (int64_t q = first; q < last; ++q)
    if (!is_finite(Exp2<T>::kSteps * task.queries[q].rate))
      return treat<T, kD, kWarm>(task, block, first, last, scratch, sums);
  plan_chunk(task, i, first, last, chunk);
  if (chunk.centred) {
    const bool floor = grid.r_floor[i] != grid.r_top[i];
    if (task.has_scale) {
      centred_chunk<T, kD, true, true>(grid, block, chunk, sums);
    } else if (floor || !kSpecialised) {
      centred_chunk<T, kD, false, true>(grid, block, chunk, sums);
    } else if constexpr (kSpecialised) {
      centred_chunk<T, kD, false, false>(grid, block, chunk, sums);
    }
  }
  if (chunk.others) {
    auto call = [&](auto has_scale) {
      difference_chunk<T, kD, has_scale.value>(block, grid.block, chunk.other, chunk.others, sums);
    };
    task.has_scale || !kSpecialised ? call(Yes{}) : call(No{});
  }
}

LEBM_END_TARGET
