// The column pass at D > kFewDimensions, a tile of queries against a block of latents at a time.
// Included inside an instruction set's namespace, after columns.h; tiled.h has the products.
//
//     energies   E[q][j], in the arithmetic of the row pass to the bit           energies_of_tile
//     shares     P[q][j] = G p                                                   share_of
//     gradient   sum_q P s (y - s g) = sum_q P (s u) - v sum_q P s^2             add_product
//
// with u = y - s c and v = g - c about the block's centre c. As in the row pass, that loses digits
// for a query much nearer to a latent than the latents are to c: its differences are summed apart.
#pragma once

#include "../grid/nearness.h"
#include "../grid/product.h"
#include "../simd/outer_product.h"
#include "task.h"

LEBM_BEGIN_TARGET

// Scratch of a tile of queries, and of sums over a chunk of them.
template <typename T>
struct TiledColumns {
  T* share;   // [kMany][block], energies, then shares
  T* spare;   // [kGroup][block]
  T* u;       // [kMany][row_length(D)], s u
  T* s;       // [kMany][row_length(D)]
  T* square;  // [block][row_length(D)], sum of P s^2
  T* near_g;  // [D][block], sum of P s (y - s g) over the near queries
  T* near_r;  // [block], sum of P over the near queries

  static int64_t count(int64_t D, int64_t block) {
    return (kMany + kGroup) * block + 2 * kMany * row_length<T>(D) +
           block * (row_length<T>(D) + D + 1);
  }
  TiledColumns(T* memory, int64_t D, int64_t block) {
    const int64_t row = row_length<T>(D);
    share = memory;
    spare = share + kMany * block;
    u = spare + kGroup * block;
    s = u + kMany * row;
    square = s + kMany * row;
    near_g = square + block * row;
    near_r = near_g + D * block;
  }
};

// s u and s of a tile's queries about a block's centre. The product s c is not rounded: it may be
// much larger than u.
template <typename T>
static void centre_scaled_tile(const T* y, const T* s, const T* centre, int64_t D, int64_t count,
                               const TiledColumns<T>& scratch) {
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

// Turns a query's energies into shares, and adds them to r and to grad_l.
template <typename T, Treatment kHow, bool kWeighted, bool kWantsL>
static void shares_of_one(const ColumnQuery<T>& query, const Block<T>& block, int64_t size,
                          T* share, T* r, T* l) {
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> of_l = kWantsL ? load(l + j) : broadcast(T(0));
    const Vec<T> p = share_of<T, kHow, kWeighted, kWantsL>(
        query, load(share + j), load(block.log2_w + j), load(block.w + j), of_l);
    if (kWantsL) store(l + j, of_l);
    store(r + j, add(load(r + j), p));
    store(share + j, p);
  }
}

// The same without log-weights, for a query of which grad_l is not wanted.
template <typename T>
static void finite_shares_of_one(const ColumnQuery<T>& query, int64_t size, T* share, T* r) {
  using Power = Exp2<T>;
  constexpr int K = 2;
  const Power power;
  const Vec<T> least_ = broadcast(query.least), rate = broadcast(-Power::kSteps * query.rate);
  const Vec<T> whole = broadcast(-Power::kSteps * query.whole);
  const Vec<T> lowest = broadcast(Power::kSteps * Power::kLowest);
  const Vec<T> of_query = broadcast(T(double(query.share) * Power::kUnit));
  for (int64_t j = 0; j < size; j += K * kLanes<T>) {
    Vec<T> x[K], p[K], scale[K];
    for (int k = 0; k < K; ++k) {
      const Vec<T> excess = sub(load(share + j + k * kLanes<T>), least_);
      x[k] = max(fma(excess, rate, whole), lowest);
    }
    power(x, p, scale);
    for (int k = 0; k < K; ++k) {
      const int64_t at = j + k * kLanes<T>;
      p[k] = mul(Power::value(p[k], scale[k]), of_query);
      store(r + at, add(load(r + at), p[k]));
      store(share + at, p[k]);
    }
  }
}

// Adds P s (y - s g) of one query to near_g, and takes it out of the product.
template <typename T, bool kHasScale>
static void add_near(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                     T* share, T* near_g) {
  for (int64_t d = 0; d < D; ++d) {
    const Vec<T> at = broadcast(y[d]), by = broadcast(s[d]);
    const T* g = block.g + d * size;
    T* total = near_g + d * size;
    for (int64_t j = 0; j < size; j += kLanes<T>) {
      const Vec<T> of_pair = load(share + j), latents = load(g + j);
      const Vec<T> pull = kHasScale ? mul(of_pair, by) : of_pair;
      const Vec<T> difference = kHasScale ? fnma(by, latents, at) : sub(at, latents);
      store(total + j, fma(pull, difference, load(total + j)));
    }
  }
  fill(share, size, T(0));
}

// Adds a chunk's sums to those over all chunks.
template <typename T, bool kHasScale>
static void add_tiled_chunk(const Block<T>& block, int64_t size, int64_t D, bool any_near,
                            const TiledColumns<T>& scratch, const ColumnSums<T>& sums) {
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

template <typename T, Treatment kHow, bool kWeighted, bool kWantsL, bool kHasScale>
static void many_against_block(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                               int64_t last, T* memory, const ColumnSums<T>& sums) {
  const int64_t size = task.grid->block, D = task.grid->D, row = row_length<T>(D);
  const TiledColumns<T> scratch(memory, D, size);
  bool any_near = false;
  TileState<T> state;
  state.weighted = task.grid->weighted;
  state.exact = false;
  state.postpone = 0;
  fill(scratch.u, kMany * row, T(0));
  fill(sums.g, row * size, T(0));
  fill(sums.r, size, T(0));
  fill(sums.l, size, T(0));
  if (kHasScale) fill(scratch.square, row * size, T(0));
  for (int64_t tile = first; tile < last; tile += kMany) {
    const int64_t count = last - tile < kMany ? last - tile : kMany;
    const T *y = task.y + tile * D, *s = task.s + tile * D;
    T smallest[kMany];
    for (int64_t q = 0; q < count; ++q) {
      state.rate[q] = task.queries[tile + q].rate;
      state.least[q] = task.queries[tile + q].least;
    }
    if (kHasScale)
      centre_scaled_tile(y, s, block.centre, D, count, scratch);
    else
      centre_tile(y, block.centre, D, count, scratch.u);
    // Rows past the last query are another treatment's, or padding: computed and not used.
    energies_of_tile(*task.grid, block, kHasScale, y, s, count, scratch.u, state, scratch.share,
                     scratch.spare, smallest);
    for (int64_t q = 0; q < count; ++q) {
      const ColumnQuery<T>& query = task.queries[tile + q];
      T* share = scratch.share + q * size;
      const T stretch = kHasScale ? largest_square(s + q * D, D) : T(1);
      const bool near =
          is_too_near(*task.grid, block.first / size, smallest[q], query.rate, stretch);
      if (near && !any_near) {
        any_near = true;
        fill(scratch.near_g, D * size, T(0));
        fill(scratch.near_r, size, T(0));
      }
      T* r = near ? scratch.near_r : sums.r;
      if constexpr (kHow == kFinite && !kWeighted && !kWantsL)
        finite_shares_of_one(query, size, share, r);
      else
        shares_of_one<T, kHow, kWeighted, kWantsL>(query, block, size, share, r, sums.l);
      if (near) add_near<T, kHasScale>(block, size, D, y + q * D, s + q * D, share, scratch.near_g);
    }
    add_product<T, false>(scratch.share, 1, size, scratch.u, count, row, size, sums.g);
    if (kHasScale)
      add_product<T, true>(scratch.share, 1, size, scratch.s, count, row, size, scratch.square);
  }
  add_tiled_chunk<T, kHasScale>(block, size, D, any_near, scratch, sums);
  double* l_all = kHow == kFinite ? sums.l_all : sums.l_small;
  for (int64_t j = 0; kWantsL && j < size; ++j) l_all[j] += sums.l[j];
}

LEBM_END_TARGET
