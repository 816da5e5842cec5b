// The row pass at D > 4: a tile of queries against a block of latents at a time, as products of
// small matrices held in registers.
//
//     energies      E[q][j] = r[j] + sum_d (y[q][d] - s[q][d] g[d][j])^2     energies_of_tile
//     exponentials  p[q][j] = w[j] exp(-beta (E[q][j] - m[q]))               add_block
//     moments       first[q][d] = sum_j p[q][j] v[j][d], second with v^2     add_product
//
// Moments are taken about the block's centre c, v = g - c. That loses digits where a query is much
// nearer to a latent than the latents are to c: there, differences are summed (moments_of_one).
#pragma once

#include "../grid/nearness.h"
#include "../grid/product.h"
#include "../simd/outer_product.h"
#include "block.h"
#include "slope.h"

LEBM_BEGIN_TARGET

// Scratch memory of a tile of queries.
template <typename T>
struct WideScratch {
  T* p;               // [kWideTile][block], energies, then p
  T* spare;           // [kGroup][block]
  T* u;               // [kWideTile][row_length(D)], y - c
  T *first, *second;  // the same shape, moments

  static int64_t count(int64_t D, int64_t block) {
    return (kWideTile + kGroup) * block + 3 * kWideTile * row_length<T>(D);
  }
  WideScratch(T* memory, int64_t D, int64_t block) {
    const int64_t rows = kWideTile * row_length<T>(D);
    p = memory;
    spare = p + kWideTile * block;
    u = spare + kGroup * block;
    first = u + rows;
    second = first + rows;
  }
};

// The moments of one query, whose p lie in a row: of differences y - s g or, where the posterior
// mean is wanted, of g itself. kDims dimensions from `start` on.
template <typename T, Level kLevel, bool kDifferences, int kDims>
static void moments_of_dims(const Block<T>& block, int64_t size, int64_t start,
                            const Query<T>& query, double mass, const T* p, Vectors& vectors) {
  Vec<T> firsts[kDims], seconds[kDims], y[kDims], s[kDims];
  for (int i = 0; i < kDims; ++i) {
    firsts[i] = seconds[i] = broadcast(T(0));
    y[i] = broadcast(query.y[start + i]);
    s[i] = broadcast(query.s[start + i]);
  }
  const T* g = block.g + start * size;
  const int64_t run = run_length<T>(size);
  for (int64_t begin = 0; begin < size; begin += run) {
    Vec<T> first[kDims], second[kDims];
    for (int i = 0; i < kDims; ++i) first[i] = second[i] = broadcast(T(0));
    const int64_t end = begin + run < size ? begin + run : size;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      const Vec<T> weight = load(p + j);
      for (int i = 0; i < kDims; ++i) {
        const Vec<T> latents = load(g + i * size + j);
        const Vec<T> factor = kDifferences ? fnma(s[i], latents, y[i]) : latents;
        if constexpr (kLevel == kAllMoments) {
          const Vec<T> moment = mul(weight, factor);
          first[i] = add(first[i], moment);
          second[i] = fma(moment, latents, second[i]);
        } else {
          first[i] = fma(weight, factor, first[i]);
        }
      }
    }
    for (int i = 0; i < kDims; ++i) {
      firsts[i] = add(firsts[i], first[i]);
      seconds[i] = add(seconds[i], second[i]);
    }
  }
  for (int i = 0; i < kDims; ++i) {
    const int64_t d = start + i;
    const double one = sum(firsts[i]), two = sum(seconds[i]);
    if (!kDifferences) {
      add_moments(d, one, two, mass, 0.0, query.y[d], query.s[d], vectors);
      continue;
    }
    if (vectors.residual) vectors.residual[d] += one;
    if (vectors.stretch) vectors.stretch[d] += two;
  }
}

template <typename T, Level kLevel, bool kDifferences>
static void moments_of_one(const Block<T>& block, int64_t size, int64_t D, const Query<T>& query,
                           double mass, const T* p, Vectors& vectors) {
  int64_t d = 0;
  for (; d + 4 <= D; d += 4)
    moments_of_dims<T, kLevel, kDifferences, 4>(block, size, d, query, mass, p, vectors);
  for (; d < D; ++d)
    moments_of_dims<T, kLevel, kDifferences, 1>(block, size, d, query, mass, p, vectors);
}

// add_moments for all dimensions, from the moments about the block's centre.
template <typename T>
static void add_moments_of_block(const Block<T>& block, int64_t D, const Query<T>& query,
                                 double mass, const T* first, const T* second, Vectors& vectors) {
  const T *y = query.y, *s = query.s, *centre = block.centre;
  for (int64_t d = 0; vectors.residual && d < D; ++d) {
    const double u = double(y[d]) - double(s[d]) * centre[d];
    vectors.residual[d] += u * mass - double(s[d]) * first[d];
  }
  for (int64_t d = 0; vectors.stretch && d < D; ++d) {
    const double scale = s[d], c = centre[d], u = double(y[d]) - scale * c;
    vectors.stretch[d] += c * (u * mass - scale * first[d]) + u * first[d] - scale * second[d];
  }
}

// The moments of a tile from p in the scratch memory; `of_block` are its sums over the block.
template <typename T, Level kLevel>
static void add_moments_of_tile(const Grid<T>& grid, const Block<T>& block, const Query<T>* queries,
                                int64_t count, const BlockSums<T>* of_block, const T* smallest,
                                const WideScratch<T>& scratch, Vectors* vectors) {
  const int64_t size = grid.block, D = grid.D, row = row_length<T>(D), i = block.first / size;
  const bool wide = !(grid.extent[i] < kHuge<T>);
  bool product[kWideTile], any = false;
  for (int64_t q = 0; q < count; ++q) {
    product[q] = false;
    // For a query that summed nothing, p still holds energies.
    if (of_block[q].mass == T(0)) continue;
    const T* p = scratch.p + q * size;
    if (vectors[q].mean) {
      moments_of_one<T, kLevel, false>(block, size, D, queries[q], of_block[q].mass, p, vectors[q]);
    } else if (wide ||
               is_too_near(grid, i, smallest[q], queries[q].rate, queries[q].square_scale)) {
      // Squares may overflow in a huge block, where differences times a p of 0 are 0.
      moments_of_one<T, kLevel, true>(block, size, D, queries[q], of_block[q].mass, p, vectors[q]);
    } else {
      product[q] = any = true;
    }
  }
  if (!any) return;
  const int64_t rows = (count + kOuterGroup - 1) / kOuterGroup * kOuterGroup;
  const bool squares = kLevel == kAllMoments && vectors[0].stretch;
  fill(scratch.first, rows * row, T(0));
  add_product<T, false>(scratch.p, size, 1, block.v, size, row, rows, scratch.first);
  if (squares) {
    fill(scratch.second, rows * row, T(0));
    add_product<T, true>(scratch.p, size, 1, block.v, size, row, rows, scratch.second);
  }
  for (int64_t q = 0; q < count; ++q) {
    if (!product[q]) continue;
    add_moments_of_block(block, D, queries[q], of_block[q].mass, scratch.first + q * row,
                         scratch.second + q * row, vectors[q]);
  }
}

// A tile of at most kWideTile queries, whose y and s lie in consecutive rows, against a range of
// blocks. `exact`: m and its index must be those of the least energy itself. `settle`: the place of
// the latent for settle_gap, or -1.
template <typename T, Level kLevel>
static void pass_over_wide_tile(const Grid<T>& grid, int64_t first_block, int64_t last_block,
                                bool scaled, bool exact, int64_t settle, Query<T>* queries,
                                int64_t count, T* memory, Sums<T>* sums, Vectors* vectors) {
  const int64_t size = grid.block, D = grid.D;
  const WideScratch<T> scratch(memory, D, size);
  const T *y = queries[0].y, *s = queries[0].s;
  TileState<T> state;
  state.weighted = grid.weighted;
  state.exact = exact;
  state.postpone = 0;
  for (int64_t q = 0; q < count; ++q) state.rate[q] = queries[q].rate;
  // The unused rows of the last group are multiplied too.
  fill(scratch.p, kWideTile * size, T(0));
  fill(scratch.u, kWideTile * row_length<T>(D), T(0));
  T smallest[kWideTile];
  auto take_energies = [&](const Block<T>& block) {
    for (int64_t q = 0; q < count; ++q) state.shift[q] = T(sums[q].shift);
    if (takes_products(grid, scaled)) centre_tile(y, block.centre, D, count, scratch.u);
    energies_of_tile(grid, block, scaled, y, s, count, scratch.u, state, scratch.p, scratch.spare,
                     smallest);
  };
  if (settle >= 0) {
    take_energies(grid.at(settle / size));
    for (int64_t q = 0; q < count; ++q) {
      if (queries[q].regime == kSlope)
        settle_gap(sums[q].shift, scratch.p[q * size + settle % size], queries[q]);
    }
    state.postpone = 0;
  }
  for (int64_t i = first_block; i < last_block; ++i) {
    const Block<T> block = grid.at(i);
    BlockSums<T> of_block[kWideTile];
    take_energies(block);
    for (int64_t q = 0; q < count; ++q)
      add_block<T, 0, kLevel>(grid, block, queries[q], smallest[q], scratch.p + q * size, sums[q],
                              vectors[q], of_block[q]);
    if constexpr (kLevel >= kMean) {
      if (vectors[0].residual || vectors[0].stretch || vectors[0].mean)
        add_moments_of_tile<T, kLevel>(grid, block, queries, count, of_block, smallest, scratch,
                                       vectors);
    }
  }
}

LEBM_END_TARGET
