// The column pass at D > 4, a tile of queries against a block of latents at a time.
//
//     energies   E[q][j], in the arithmetic of the row pass to the bit     energies_of_tile
//     weights    P[q][j] = G p                                             grad_p_of
//     gradient   sum_q P s (y - s g) = sum_q P (s u) - v sum_q P s^2       add_product
//
// with u = y - s c and v = g - c about the block's centre c. As in the row pass, that loses digits
// for a query much nearer to a latent than the latents are to c: its differences are summed apart.
#pragma once

#include "../grid/nearness.h"
#include "../grid/product.h"
#include "../simd/outer_product.h"
#include "task.h"

LEBM_BEGIN_TARGET

// Scratch memory of a tile of queries, and of sums over a chunk of them.
template <typename T>
struct WideColumnScratch {
  T* grad_p;  // [kWideTile][block], energies, then G p
  T* spare;   // [kGroup][block]
  T* u;       // [kWideTile][row_length(D)], s u
  T* s;       // [kWideTile][row_length(D)]
  T* square;  // [block][row_length(D)], sum of P s^2
  T* near_g;  // [D][block], sum of P s (y - s g) over the near queries
  T* near_r;  // [block], sum of P over the near queries

  static int64_t count(int64_t D, int64_t block) {
    return (kWideTile + kGroup) * block + 2 * kWideTile * row_length<T>(D) +
           block * (row_length<T>(D) + D + 1);
  }
  WideColumnScratch(T* memory, int64_t D, int64_t block) {
    const int64_t row = row_length<T>(D);
    grad_p = memory;
    spare = grad_p + kWideTile * block;
    u = spare + kGroup * block;
    s = u + kWideTile * row;
    square = s + kWideTile * row;
    near_g = square + block * row;
    near_r = near_g + D * block;
  }
};

// s u and s of a tile's queries about a block's centre. The product s c is not rounded: it may be
// much larger than u.
template <typename T>
static void centre_scaled_tile(const T* y, const T* s, const T* centre, int64_t D, int64_t count,
                               const WideColumnScratch<T>& scratch) {
  const int64_t row = row_length<T>(D);
  for (int64_t q = 0; q < count; ++q, y += D, s += D) {
    T *u = scratch.u + q * row, *scale = scratch.s + q * row;
    for (int64_t d = 0; d < D; ++d) {
      u[d] = s[d] * T(double(y[d]) - double(s[d]) * centre[d]);
      scale[d] = s[d];
    }
    for (int64_t d = D; d < row; ++d) u[d] = scale[d] = T(0);
  }
}

// Turns a query's energies into G p, and adds them to r and to grad_l.
template <typename T, Regime kRegime, bool kWeighted, bool kWantsL>
static void grad_p_of_one(const ColumnQuery<T>& query, const Block<T>& block, int64_t size,
                          T* grad_p, T* r, T* l) {
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> of_l = kWantsL ? load(l + j) : broadcast(T(0));
    const Vec<T> p = grad_p_of<T, kRegime, kWeighted, kWantsL>(
        query, load(grad_p + j), load(block.log2_w + j), load(block.w + j), of_l);
    if (kWantsL) store(l + j, of_l);
    store(r + j, add(load(r + j), p));
    store(grad_p + j, p);
  }
}

// The same for a warm query without log-weights, where grad_l is not wanted.
template <typename T>
static void warm_grad_p_of_one(const ColumnQuery<T>& query, int64_t size, T* grad_p, T* r) {
  using Power = Exp2<T>;
  constexpr int K = 2;
  const Power power;
  const Vec<T> shift_ = broadcast(query.shift), rate = broadcast(-Power::kSteps * query.rate);
  const Vec<T> log2_mass = broadcast(-Power::kSteps * query.log2_mass);
  const Vec<T> of_query = broadcast(T(double(query.grad) * Power::kUnit));
  for (int64_t j = 0; j < size; j += K * kLanes<T>) {
    Vec<T> x[K], p[K], scale[K];
    for (int k = 0; k < K; ++k) {
      const Vec<T> excess = sub(load(grad_p + j + k * kLanes<T>), shift_);
      x[k] = fma(excess, rate, log2_mass);
    }
    power.template bounded<true>(Power::kLowest, x, p, scale);
    for (int k = 0; k < K; ++k) {
      const int64_t at = j + k * kLanes<T>;
      p[k] = mul(Power::value(p[k], scale[k]), of_query);
      store(r + at, add(load(r + at), p[k]));
      store(grad_p + at, p[k]);
    }
  }
}

// Adds P s (y - s g) of one query to near_g, and removes the query from the product.
template <typename T, bool kHasScale>
static void add_near(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                     T* grad_p, T* near_g) {
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
  fill(grad_p, size, T(0));
}

// Adds a chunk's sums to those over all chunks.
template <typename T, bool kHasScale>
static void add_wide_chunk(const Block<T>& block, int64_t size, int64_t D, bool any_near,
                           const WideColumnScratch<T>& scratch, const ColumnSums<T>& sums) {
  const int64_t row = row_length<T>(D);
  for (int64_t j = 0; j < size; ++j) {
    const T *v = block.v + j * row, *g = sums.g + j * row, *square = scratch.square + j * row;
    double* total = sums.g_all + j * row;
    const T r = sums.r[j];
    for (int64_t d = 0; d < row; ++d)
      total[d] += g[d] - double(v[d]) * double(kHasScale ? square[d] : r);
    for (int64_t d = 0; any_near && d < D; ++d) total[d] += scratch.near_g[d * size + j];
    sums.r_all[j] += any_near ? r + scratch.near_r[j] : r;
  }
}

template <typename T, Regime kRegime, bool kWeighted, bool kWantsL, bool kHasScale>
static void wide_block(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                       int64_t last, T* memory, const ColumnSums<T>& sums) {
  const int64_t size = task.grid->block, D = task.grid->D, row = row_length<T>(D);
  const WideColumnScratch<T> scratch(memory, D, size);
  bool any_near = false;
  TileState<T> state;
  state.weighted = task.grid->weighted;
  state.exact = false;
  state.postpone = 0;
  fill(scratch.u, kWideTile * row, T(0));
  fill(sums.g, row * size, T(0));
  fill(sums.r, size, T(0));
  fill(sums.l, size, T(0));
  if (kHasScale) fill(scratch.square, row * size, T(0));
  for (int64_t tile = first; tile < last; tile += kWideTile) {
    const int64_t count = last - tile < kWideTile ? last - tile : kWideTile;
    const T *y = task.y + tile * D, *s = task.s + tile * D;
    T smallest[kWideTile];
    for (int64_t q = 0; q < count; ++q) {
      state.rate[q] = task.queries[tile + q].rate;
      state.shift[q] = task.queries[tile + q].shift;
    }
    if (kHasScale)
      centre_scaled_tile(y, s, block.centre, D, count, scratch);
    else
      centre_tile(y, block.centre, D, count, scratch.u);
    // Rows past the last query belong to another regime, or are padding: computed and not used.
    energies_of_tile(*task.grid, block, kHasScale, y, s, count, scratch.u, state, scratch.grad_p,
                     scratch.spare, smallest);
    for (int64_t q = 0; q < count; ++q) {
      const ColumnQuery<T>& query = task.queries[tile + q];
      T* grad_p = scratch.grad_p + q * size;
      const T square_scale = kHasScale ? largest_square(s + q * D, D) : T(1);
      const bool near =
          is_too_near(*task.grid, block.first / size, smallest[q], query.rate, square_scale);
      if (near && !any_near) {
        any_near = true;
        fill(scratch.near_g, D * size, T(0));
        fill(scratch.near_r, size, T(0));
      }
      T* r = near ? scratch.near_r : sums.r;
      if constexpr (kRegime == kWarm && !kWeighted && !kWantsL)
        warm_grad_p_of_one(query, size, grad_p, r);
      else
        grad_p_of_one<T, kRegime, kWeighted, kWantsL>(query, block, size, grad_p, r, sums.l);
      if (near)
        add_near<T, kHasScale>(block, size, D, y + q * D, s + q * D, grad_p, scratch.near_g);
    }
    add_product<T, false>(scratch.grad_p, 1, size, scratch.u, count, row, size, sums.g);
    if (kHasScale)
      add_product<T, true>(scratch.grad_p, 1, size, scratch.s, count, row, size, scratch.square);
  }
  add_wide_chunk<T, kHasScale>(block, size, D, any_near, scratch, sums);
  double* l_all = kRegime == kWarm ? sums.l_all : sums.l_small;
  for (int64_t j = 0; kWantsL && j < size; ++j) l_all[j] += sums.l[j];
}

LEBM_END_TARGET
