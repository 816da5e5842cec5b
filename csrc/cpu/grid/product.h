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
//     error    the rounding of `dot` and of |u|^2, |v|^2 and their sum
//     allowed  a rounding of E, and of 1 / beta, the scale at which p tells energies apart
//
// Where the error is too large and the block matters, the query's energies are taken again, from
// differences. This depends only on the query, the block and the product itself, not on the rest of
// the tile or on earlier blocks. So the row and the column pass take the energies of a query and a
// block that matters in the same way; otherwise p would be wrong by beta times the difference of
// the two ways. At beta = inf minima are chosen by energies from differences alone.
//
// Only without latent energies: with them, sums have roundings of the size of these energies.
#pragma once

#include "energy.h"

LEBM_BEGIN_TARGET

// The facts about a tile's queries that their energies depend on.
template <typename T>
struct TileState {
  T rate[kWideTile];
  T shift[kWideTile];  // the least energy so far, or of all latents
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

enum Verdict { kGood, kDoesNotMatter, kLost };

// Whether the energies of a query and a block are good enough; `smallest` is the least of them.
template <typename T>
static Verdict judge(const TileState<T>& state, int64_t q, T square, T extent, T smallest,
                     int64_t D) {
  const double low = smallest > 0 ? double(smallest) : 0.0, rate = state.rate[q];
  const double u = __builtin_sqrt(double(square)), radius = __builtin_sqrt(double(extent));
  // A latent of little energy is as far from the centre as the query.
  const double far = u + __builtin_sqrt(low), v = far < radius ? far : radius;
  const double squares = double(square) + v * v, product = (squares - low) / 2;
  if (!(squares < kAbsent<T>)) return kLost;
  const double dot = (product > 0 ? product : -product) + u * v / __builtin_sqrt(double(D));
  // The two errors are independent.
  const double of_dot = 2 * kRoundingOfDot * dot, of_squares = kRoundingOfSquares * squares;
  const double error = __builtin_sqrt(of_dot * of_dot + of_squares * of_squares);
  const double margin = 16 * double(Exponent<T>::epsilon) * error;
  const double excess = double(smallest) - margin - double(state.shift[q]);
  const bool cold = !is_finite(rate);
  if ((!state.weighted || cold) && excess > 0 && rate * excess > 64) return kDoesNotMatter;
  if (cold || (state.exact && !(excess > 0))) return kLost;
  double allowed = kEnergyRoundings * low;
  if (!state.weighted) allowed += kBetaRoundings / rate;
  return error <= allowed ? kGood : kLost;
}

// u of a tile's queries about a block's centre, in rows of row_length(D).
template <typename T>
static void centre_tile(const T* y, const T* centre, int64_t D, int64_t count, T* u) {
  const int64_t row = row_length<T>(D);
  for (int64_t q = 0; q < count; ++q) {
    for (int64_t d = 0; d < D; ++d) u[q * row + d] = y[q * D + d] - centre[d];
    for (int64_t d = D; d < row; ++d) u[q * row + d] = T(0);
  }
}

// |u|^2 of a row, padding included.
template <typename T>
static T square_of_row(const T* u, int64_t row) {
  Vec<T> total = broadcast(T(0));
  for (int64_t d = 0; d < row; d += kLanes<T>) total = fma(load(u + d), load(u + d), total);
  return sum(total);
}

template <typename T>
static void fill_products(const Block<T>& block, int64_t size, int64_t D, const T* u,
                          const T* square, int64_t count, T* out) {
  constexpr int kAbreast = 3;
  const int64_t row = row_length<T>(D);
  for (int64_t start = 0; start < D; start += kSlab) {
    const int64_t dims = D - start < kSlab ? D - start : kSlab;
    const bool last = start + dims == D;
    for (int64_t j = 0; j < size; j += kAbreast * kLanes<T>) {
      for (int64_t q = 0; q < count; q += kGroup) {
        const T* at = u + q * row + start;
        T* energy = out + q * size + j;
        auto term = [&](int k, int64_t d, const Vec<T>* v, Vec<T>* partial) LEBM_INLINE_LAMBDA {
          const Vec<T> query = broadcast(at[k * row + d]);
          for (int i = 0; i < kAbreast; ++i) partial[i] = fma(query, v[i], partial[i]);
        };
        auto take = [&](int k, int64_t lane, Vec<T> dot) LEBM_INLINE_LAMBDA {
          T* place = energy + k * size + lane;
          if (start) dot = add(load(place), dot);
          if (last) {
            const Vec<T> squares = add(broadcast(square[q + k]), load(block.square + j + lane));
            dot = fnma(broadcast(T(2)), dot, squares);
          }
          store(place, dot);
        };
        sum_panel<T, kAbreast>(block.across + start * size + j, size, dims, term, take);
      }
    }
  }
}

// Takes the energies of the marked queries again, from differences.
template <typename T>
static void take_again(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                       int64_t count, const bool* again, T* out, T* spare, T* smallest) {
  for (int64_t first = 0; first < count; first += kGroup) {
    const int64_t last = first + kGroup < count ? first + kGroup : count;
    bool any = false;
    for (int64_t q = first; q < last; ++q) any |= again[q];
    if (!any) continue;
    energies_of_queries(block, size, D, false, y + first * D, s + first * D, last - first, spare);
    for (int64_t q = first; q < last; ++q) {
      if (!again[q]) continue;
      const T* energy = spare + (q - first) * size;
      for (int64_t j = 0; j < size; ++j) out[q * size + j] = energy[j];
      smallest[q] = least_of_row(energy, size);
    }
  }
}

// Energies from products, where these are good enough; see energies_of_tile.
template <typename T>
static void energies_by_product(const Grid<T>& grid, const Block<T>& block, const T* y, const T* s,
                                int64_t count, const T* u, TileState<T>& state, T* out, T* spare,
                                T* smallest) {
  const int64_t size = grid.block, D = grid.D, row = row_length<T>(D);
  T square[kWideTile];
  for (int64_t q = 0; q < in_groups(count); ++q) square[q] = square_of_row(u + q * row, row);
  fill_products(block, size, D, u, square, count, out);
  const T extent = grid.extent[block.first / size];
  int64_t lost = 0;
  bool again[kWideTile];
  for (int64_t q = 0; q < count; ++q) {
    smallest[q] = least_of_row(out + q * size, size);
    again[q] = judge(state, q, square[q], extent, smallest[q], D) == kLost;
    lost += again[q];
  }
  if (lost) take_again(block, size, D, y, s, count, again, out, spare, smallest);
  // Where most are lost, the next blocks are likely to be no better.
  if (2 * lost > count && only_prunes(state, count)) state.postpone = 7;
}

// Energies of `count` <= kWideTile queries, and the least of each. Rows of y and s have D numbers,
// rows of u (used without scale) row_length(D). All rows are read and written up to a multiple of
// kGroup; `spare` has room for the energies of kGroup queries.
template <typename T>
static void energies_of_tile(const Grid<T>& grid, const Block<T>& block, bool scaled, const T* y,
                             const T* s, int64_t count, const T* u, TileState<T>& state, T* out,
                             T* spare, T* smallest) {
  const int64_t size = grid.block, D = grid.D;
  const bool postponed = state.postpone > 0 && only_prunes(state, count);
  if (takes_products(grid, scaled) && !postponed) {
    energies_by_product(grid, block, y, s, count, u, state, out, spare, smallest);
    return;
  }
  if (postponed) --state.postpone;
  energies_of_queries(block, size, D, scaled, y, s, count, out);
  for (int64_t q = 0; q < count; ++q) smallest[q] = least_of_row(out + q * size, size);
}

LEBM_END_TARGET
