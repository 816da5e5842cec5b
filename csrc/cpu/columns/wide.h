// The column pass at D > 4, a tile of queries against a block of latents at a time.
//
//     energies   E[q][j], in the arithmetic of the row pass to the bit         grid/product.h
//     weights    P[q][j] = G p                                                 fill_grad_p
//     gradient   sum_q P s (y - s g) = sum_q P (s u) - v sum_q P s^2 [D][block]   sum_over_queries
//
// with u = y - s c and v = g - c about the block's centre c. As in the row pass, that loses digits
// for a query much nearer to a latent than the latents are to c: its differences are summed apart.
#pragma once

#include "../grid/nearness.h"
#include "../grid/outer_product.h"
#include "../grid/powers.h"
#include "../grid/product.h"
#include "task.h"

LEBM_BEGIN_TARGET

// Scratch memory of a tile of queries, and of sums over a chunk of them.
template <typename T>
struct WideColumnScratch {
  T* grad_p;      // [kWideTile][block], energies, then G p
  T* spare;       // [kGroup][block]
  T* factor;      // [kWideTile][D + 1], s u and a last 1
  T* squares;     // [kWideTile][D], s^2
  T* of_squares;  // [D][block], sum of P s^2
  T* near_g;      // [D][block], sum of P s (y - s g) over the near queries
  T* near_r;      // [block], sum of P over the near queries

  static int64_t count(int64_t D, int64_t block) {
    return (kWideTile + kGroup) * block + kWideTile * (2 * D + 1) + block * (2 * D + 1);
  }
  WideColumnScratch(T* memory, int64_t D, int64_t block) {
    grad_p = memory;
    spare = grad_p + kWideTile * block;
    factor = spare + kGroup * block;
    squares = factor + kWideTile * (D + 1);
    of_squares = squares + kWideTile * D;
    near_g = of_squares + D * block;
    near_r = near_g + D * block;
  }
};

// s u and s^2 of a tile's queries about a block's centre. The product s c is not rounded: it may be
// much larger than u.
template <typename T>
static void centre_scaled_tile(const WideTile<T>& tile, const T* centre, int64_t D, T* squares) {
  for (int64_t q = 0; q < tile.count; ++q) {
    const T *y = tile.y + q * D, *s = tile.s + q * D;
    T* u = tile.u + q * tile.row;
    for (int64_t d = 0; d < D; ++d) {
      u[d] = s[d] * T(double(y[d]) - double(s[d]) * centre[d]);
      squares[q * D + d] = s[d] * s[d];
    }
  }
}

// Turns a query's energies into G p, and adds to grad_l.
template <typename T, Regime kRegime, bool kWeighted, bool kWantsL>
static void grad_p_of_one(const ColumnQuery<T>& query, const Block<T>& block, int64_t size,
                          T* grad_p, T* l) {
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> of_l = kWantsL ? load(l + j) : broadcast(T(0));
    const Vec<T> p = grad_p_of<T, kRegime, kWeighted, kWantsL>(
        query, load(grad_p + j), load(block.log2_w + j), load(block.w + j), of_l);
    if (kWantsL) store(l + j, of_l);
    store(grad_p + j, p);
  }
}

// Adds P s (y - s g) of one query to near_g and P to near_r.
template <typename T, bool kHasScale>
static void add_near(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                     const T* grad_p, T* near_g, T* near_r) {
  for (int64_t d = 0; d < D; ++d) {
    const Vec<T> at = broadcast(y[d]), by = broadcast(s[d]);
    const T* g = block.g + d * size;
    T* total = near_g + d * size;
    for (int64_t j = 0; j < size; j += kLanes<T>) {
      const Vec<T> of_pair = load(grad_p + j), latents = load(g + j);
      const Vec<T> pull = kHasScale ? mul(of_pair, by) : of_pair;
      const Vec<T> difference = kHasScale ? fnma(by, latents, at) : sub(at, latents);
      store(total + j, fma(pull, difference, load(total + j)));
    }
  }
  for (int64_t j = 0; j < size; j += kLanes<T>)
    store(near_r + j, add(load(near_r + j), load(grad_p + j)));
}

// Adds a chunk's sums to those over all chunks.
template <typename T, bool kHasScale>
static void add_wide_chunk(const Block<T>& block, int64_t size, int64_t D, bool any_near,
                           const WideColumnScratch<T>& scratch, const ColumnSums<T>& sums) {
  for (int64_t d = 0; d < D; ++d) {
    const T *v = block.v + d * size, *g = sums.g + d * size;
    const T* weight = kHasScale ? scratch.of_squares + d * size : sums.r;
    double* total = sums.g_all + d * size;
    for (int64_t j = 0; j < size; ++j) total[j] += g[j] - double(v[j]) * double(weight[j]);
  }
  for (int64_t j = 0; j < size; ++j) sums.r_all[j] += sums.r[j];
  if (!any_near) return;
  for (int64_t i = 0; i < D * size; ++i) sums.g_all[i] += scratch.near_g[i];
  for (int64_t j = 0; j < size; ++j) sums.r_all[j] += scratch.near_r[j];
}

// A tile of queries of one regime against a block.
template <typename T, Regime kRegime, bool kWeighted, bool kWantsL, bool kHasScale>
struct WideColumnTile {
  // p from energies that are in the first cache.
  static constexpr bool kPlain = kRegime == kWarm && !kWeighted && !kWantsL;

  const Grid<T>& grid;
  const Block<T>& block;
  const ColumnQuery<T>* queries;
  WideTile<T>& tile;
  const WideColumnScratch<T>& scratch;
  TileState<T>& state;
  T* l;
  T smallest[kWideTile] = {};
  bool matters[kWideTile] = {};  // whether any p of the query can differ from 0

  void take_row(int64_t q) {
    matters[q] = true;
    grad_p_of_one<T, kRegime, kWeighted, kWantsL>(queries[q], block, grid.block,
                                                  scratch.grad_p + q * grid.block, l);
  }

  // G p of all queries.
  void fill_grad_p() {
    if constexpr (kPlain) {
      const bool products = takes_products(grid, kHasScale);
      bool served = false;
      tile.with_source(block, grid.D, products,
                       [&](const auto& source) { served = fill_from(source); });
      if (served) {
        if (products) retake_lost();
        return;
      }
    }
    energies_of_tile(grid, block, tile, state, scratch.grad_p, scratch.spare, smallest);
    for (int64_t q = 0; q < tile.count; ++q) take_row(q);
  }

  // Returns false where the queries' exponents can't be taken this way.
  template <typename Source>
  bool fill_from(const Source& source) {
    using Power = Exp2<T>;
    constexpr int K = Source::kAbreast;
    const int64_t size = grid.block, count = tile.count;
    TilePowers<T> powers;
    T grad[kWideTile];
    Vec<T> lows[kWideTile];
    for (int64_t q = 0; q < count; ++q) {
      const ColumnQuery<T>& query = queries[q];
      if (!powers.set(q, query.rate, query.shift, query.log2_mass)) return false;
      grad[q] = T(double(query.grad) * powers.factor[q]);
      lows[q] = broadcast(Exponent<T>::infinity);
    }
    const Power power;
    each_energy<T>(source, size, count,
                   [&](int64_t q, int64_t j, const auto& energies) LEBM_INLINE_LAMBDA {
                     Vec<T> p[K], scale[K], low = lows[q];
                     const Vec<T> of_query = broadcast(grad[q]);
                     powers.template take<true>(power, q, energies, p, scale);
                     for (int i = 0; i < K; ++i) {
                       low = min(low, energies[i]);
                       store(scratch.grad_p + q * size + j + i * kLanes<T>,
                             mul(Power::value(p[i], scale[i]), of_query));
                     }
                     lows[q] = low;
                   });
    for (int64_t q = 0; q < count; ++q) {
      smallest[q] = least(lows[q]);
      matters[q] = powers.exponent(q, smallest[q]) > Power::kLowest;
    }
    return true;
  }

  // Computes from differences the energies of the queries whose products are too inexact.
  void retake_lost() {
    const int64_t size = grid.block, D = grid.D, count = tile.count;
    bool lost[kWideTile];
    judge(state, count, tile.square, grid.extent[block.first / size], smallest, D, lost);
    fill_marked(Differences<T, false>{block, D, tile.y, tile.s}, size, count, lost, scratch.grad_p,
                scratch.spare);
    for (int64_t q = 0; q < count; ++q) {
      if (!lost[q]) continue;
      smallest[q] = least_of_row(scratch.grad_p + q * size, size);
      take_row(q);
    }
  }
};

template <typename T, Regime kRegime, bool kWeighted, bool kWantsL, bool kHasScale>
static void wide_block(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                       int64_t last, T* memory, const ColumnSums<T>& sums) {
  const Grid<T>& grid = *task.grid;
  const int64_t size = grid.block, D = grid.D, row = D + 1;
  const WideColumnScratch<T> scratch(memory, D, size);
  bool any_near = false;
  TileState<T> state = {};
  state.weighted = grid.weighted;
  fill(sums.g, D * size, T(0));
  fill(sums.r, size, T(0));
  fill(sums.l, size, T(0));
  if (kHasScale) fill(scratch.of_squares, D * size, T(0));
  for (int64_t start = first; start < last; start += kWideTile) {
    const int64_t count = last - start < kWideTile ? last - start : kWideTile;
    const T *y = task.y + start * D, *s = task.s + start * D;
    // Rows past the last query belong to another regime, or are padding: computed and not used.
    WideTile<T> tile{y, s, count, kHasScale, scratch.factor, row};
    for (int64_t q = 0; q < count; ++q) {
      state.rate[q] = task.queries[start + q].rate;
      state.shift[q] = task.queries[start + q].shift;
      scratch.factor[q * row + D] = T(1);
    }
    if (kHasScale)
      centre_scaled_tile(tile, block.centre, D, scratch.squares);
    else
      tile.centre(block.centre, D);
    WideColumnTile<T, kRegime, kWeighted, kWantsL, kHasScale> of_tile{
        grid, block, task.queries + start, tile, scratch, state, sums.l};
    of_tile.fill_grad_p();
    int64_t summed[kWideTile], num = 0;  // the queries that are summed as a product
    for (int64_t q = 0; q < count; ++q) {
      if (!of_tile.matters[q]) continue;
      const T square_scale = kHasScale ? largest_square(s + q * D, D) : T(1);
      if (!is_too_near(grid, block.first / size, of_tile.smallest[q], state.rate[q],
                       square_scale)) {
        summed[num++] = q;
        continue;
      }
      if (!any_near) {
        any_near = true;
        fill(scratch.near_g, D * size, T(0));
        fill(scratch.near_r, size, T(0));
      }
      add_near<T, kHasScale>(block, size, D, y + q * D, s + q * D, scratch.grad_p + q * size,
                             scratch.near_g, scratch.near_r);
    }
    // Each row of factors ends in a 1, which sums P itself; that sum lands in sums.r, behind
    // sums.g.
    sum_over_queries(scratch.grad_p, size, scratch.factor, row, row, summed, num, sums.g);
    if (kHasScale)
      sum_over_queries(scratch.grad_p, size, scratch.squares, D, D, summed, num,
                       scratch.of_squares);
  }
  add_wide_chunk<T, kHasScale>(block, size, D, any_near, scratch, sums);
  double* l_all = kRegime == kWarm ? sums.l_all : sums.l_small;
  for (int64_t j = 0; kWantsL && j < size; ++j) l_all[j] += sums.l[j];
}

LEBM_END_TARGET
