// Energies of a tile of queries against a block of latents, from kProductDimensions on as a
// product.
//
// With u = y - c and v = g - c about the block's centre c, and no scale,
//
//     E[q][j] = |u[q]|^2 + (|v[j]|^2 + r[j]) - 2 sum_d u[q][d] v[j][d]
//
// is one multiplication a dimension where differences are two operations. The product form loses
// digits where E is much less than |u|^2 + |v|^2. The least energy of a block tells how much is
// lost:
//
//     error    the rounding of the sum over d and of |u|^2, |v|^2 and their sum
//     allowed  a rounding of E, and of 1 / beta, the scale at which p tells energies apart
//
// Where the error is too large and the block matters, the query is lost: its energies are computed
// again, from differences. The error depends on the query, the block and the product alone. Whether
// a block matters depends on m, which in the row pass is that of the blocks so far and never below
// the final m: a block that matters in the column pass mattered in the row pass too. So both passes
// compute the energies of a query and a block that matters in the same way; otherwise p would be
// wrong by beta times the difference of the two ways. At beta = inf minima are chosen by energies
// from differences alone.
//
// Only without latent energies: with them, sums have roundings of the size of these energies.
#pragma once

#include "energy.h"

LEBM_BEGIN_TARGET

// The facts about a tile's queries that their energies depend on.
template <typename T>
struct TileState {
  T rate[kWideTile];
  T shift[kWideTile];  // row pass: the least energy so far; column pass: of all latents
  bool weighted;       // log-weights may make up for any energy
  bool exact;          // the least energy and its place must be those of differences
  int64_t postpone;    // blocks for which products are skipped: they could only prune
};

// Error estimates in units of the last bit, which assume independent roundings.
constexpr double kRoundingOfDot = 0.6, kRoundingOfSquares = 0.25;
constexpr double kEnergyRoundings = 1.5, kBetaRoundings = 6;

// Whether energies may be products.
template <typename T>
static bool takes_products(const Grid<T>& grid, bool scaled) {
  return !scaled && grid.D >= kProductDimensions && grid.r_low == 0 && grid.r_high == 0;
}

// Whether a tile's products can only tell which blocks don't matter: in those that do, differences
// are taken in any case.
template <typename T>
static bool only_prunes(const TileState<T>& state, int64_t count) {
  bool all = true;
  for (int64_t q = 0; q < count; ++q) all &= !is_finite(state.rate[q]);
  return all;
}

// Energies as products. The queries' u lie in rows of `row` numbers.
template <typename T>
struct Products {
  static constexpr int kAbreast = 3;

  const Block<T>& block;
  int64_t D;
  const T* u;
  int64_t row;
  const T* square;  // |u|^2

  Products from(int64_t q) const { return {block, D, u + q * row, row, square + q}; }
  const T* latents() const { return block.v; }
  LEBM_INLINE void add_term(int64_t q, int64_t d, const Vec<T>* v, Vec<T>* sums) const {
    const Vec<T> query = broadcast(u[q * row + d]);
    for (int i = 0; i < kAbreast; ++i) sums[i] = fma(query, v[i], sums[i]);
  }
  LEBM_INLINE Vec<T> complete(int64_t q, int64_t j, Vec<T> dot) const {
    const Vec<T> squares = add(broadcast(square[q]), load(block.square + j));
    return fnma(broadcast(T(2)), dot, squares);
  }
};

// Whether the energies of a tile's queries and a block are too inexact; `smallest` are the least of
// them, `square` is |u|^2. Both have room for whole vectors.
template <typename T>
static void judge(const TileState<T>& state, int64_t count, const T* square, T extent,
                  const T* smallest, int64_t D, bool* lost) {
  T errors[kWideTile];
  const Vec<T> zero = broadcast(T(0)), radius = broadcast(T(__builtin_sqrt(double(extent))));
  const Vec<T> of_many = broadcast(T(1 / __builtin_sqrt(double(D)))), half = broadcast(T(0.5));
  const Vec<T> of_dot = broadcast(T(2 * kRoundingOfDot));
  const Vec<T> of_squares = broadcast(T(kRoundingOfSquares * kRoundingOfSquares));
  for (int64_t q = 0; q < count; q += kLanes<T>) {
    const Vec<T> low = max(load(smallest + q), zero), u = root(load(square + q));
    // A latent near the query is about as far from the centre: |v| <= |u| + sqrt(E).
    const Vec<T> v = min(add(u, root(low)), radius);
    const Vec<T> squares = fma(v, v, load(square + q)), product = mul(sub(squares, low), half);
    const Vec<T> dot = fma(mul(u, v), of_many, max(product, sub(zero, product)));
    // The two errors are independent, so their squares add. Those are divided by `squares` first,
    // since they might leave the range of T.
    const Vec<T> relative = mul(div(dot, squares), of_dot);
    store(errors + q, mul(squares, root(fma(relative, relative, of_squares))));
  }
  for (int64_t q = 0; q < count; ++q) {
    const T rate = state.rate[q], error = errors[q], low = smallest[q] > 0 ? smallest[q] : T(0);
    const T excess = smallest[q] - 16 * Exponent<T>::epsilon * error - state.shift[q];
    const bool cold = !is_finite(rate);
    const bool matters =
        (state.weighted && !cold) || !(excess > 0 && double(rate) * double(excess) > 64);
    T allowed = T(kEnergyRoundings) * low;
    if (!state.weighted) allowed += T(kBetaRoundings) / rate;
    const bool good = error <= allowed && !cold && (!state.exact || excess > 0);
    // An error that has overflowed counts as too large.
    lost[q] = !(error < kAbsent<T>) || (matters && !good);
  }
}

// A tile of queries and, where energies may be products, its u about a block's centre.
template <typename T>
struct WideTile {
  const T *y, *s;  // [count][D], with rows up to a multiple of kGroup
  int64_t count;
  bool scaled;  // some s is not 1
  T* u;         // [kWideTile][row]
  int64_t row;
  T square[kWideTile] = {};  // |u|^2

  // Sets u and |u|^2. Rows past the last query repeat it.
  void centre(const T* c, int64_t D) {
    for (int64_t q = 0; q < in_groups(count); ++q) {
      const T* own = y + (q < count ? q : count - 1) * D;
      T* out = u + q * row;
      Vec<T> squares = broadcast(T(0));
      int64_t d = 0;
      for (; d + kLanes<T> <= D; d += kLanes<T>) {
        const Vec<T> from = sub(load(own + d), load(c + d));
        store(out + d, from);
        squares = fma(from, from, squares);
      }
      T total = sum(squares);
      for (; d < D; ++d) {
        out[d] = own[d] - c[d];
        total += out[d] * out[d];
      }
      square[q] = total;
    }
  }
  // Calls f(source) with the energies as products or differences.
  template <typename F>
  LEBM_INLINE void with_source(const Block<T>& block, int64_t D, bool products, const F& f) const {
    if (products)
      f(Products<T>{block, D, u, row, square});
    else if (scaled)
      f(Differences<T, true>{block, D, y, s});
    else
      f(Differences<T, false>{block, D, y, s});
  }
};

// Energies [kWideTile][size] of a tile's queries, and the least of each. `spare` has room for the
// energies of kGroup queries.
template <typename T>
static void energies_of_tile(const Grid<T>& grid, const Block<T>& block, const WideTile<T>& tile,
                             TileState<T>& state, T* out, T* spare, T* smallest) {
  const int64_t size = grid.block, D = grid.D, count = tile.count;
  const bool postponed = state.postpone > 0 && only_prunes(state, count);
  if (postponed) --state.postpone;
  const bool products = takes_products(grid, tile.scaled) && !postponed;
  auto find_least = [&](const bool* marked) {
    for (int64_t q = 0; q < count; ++q)
      if (!marked || marked[q]) smallest[q] = least_of_row(out + q * size, size);
  };
  tile.with_source(block, D, products,
                   [&](const auto& source) { fill_energies(source, size, count, out); });
  find_least(nullptr);
  if (!products) return;
  bool lost[kWideTile];
  judge(state, count, tile.square, grid.extent[block.first / size], smallest, D, lost);
  int64_t num_lost = 0;
  for (int64_t q = 0; q < count; ++q) num_lost += lost[q];
  if (num_lost == 0) return;
  fill_marked(Differences<T, false>{block, D, tile.y, tile.s}, size, count, lost, out, spare);
  find_least(lost);
  // Where most are lost, the next blocks are likely to be no better.
  if (2 * num_lost > count && only_prunes(state, count)) state.postpone = 7;
}

LEBM_END_TARGET
