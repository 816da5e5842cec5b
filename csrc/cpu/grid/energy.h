// Energies of the latents of a block:
//
//     E[n] = r[n] + sum_d (y_d - s_d g[n,d])^2     for g [D][block], r [block]
//
// The row and the column pass share this arithmetic to the bit, so that at beta = inf both find the
// same minima.
#pragma once

#include "grid.h"

LEBM_BEGIN_TARGET

// The energies of one vector of latents at j, for a D known at compile time.
template <typename T, int kD>
LEBM_INLINE Vec<T> energy_of(const Block<T>& block, int64_t stride, int64_t j, const T* y,
                             const T* s) {
  Vec<T> e = load(block.r + j);
  for (int d = 0; d < kD; ++d) {
    Vec<T> difference = fnma(broadcast(s[d]), load(block.g + d * stride + j), broadcast(y[d]));
    e = fma(difference, difference, e);
  }
  return e;
}

// Fills out[block]; returns the least energy.
template <typename T, int kD>
static LEBM_INLINE T energies(const Block<T>& block, int64_t size, const T* y, const T* s, T* out) {
  Vec<T> smallest = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> e = energy_of<T, kD>(block, size, j, y, s);
    store(out + j, e);
    smallest = min(smallest, e);
  }
  return least(smallest);
}

// Any D: four queries by three vectors of latents in registers, so that each load serves several
// pairs. Dimensions are taken in slabs: a sum of partial sums rounds less than one long sum, and a
// panel of latents stays in the first cache for all queries.
constexpr int kGroup = 4;
constexpr int64_t kSlab = 32;

// The most queries whose energies are taken together, a multiple of every group size.
constexpr int64_t kWideTile = 48;

LEBM_INLINE int64_t in_groups(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

// The sums of one panel over `dims` dimensions for kGroup queries; `take` gets each with its place.
template <typename T, int kAbreast, typename Term, typename Take>
LEBM_INLINE void sum_panel(const T* latents, int64_t size, int64_t dims, const Term& term,
                           const Take& take) {
  Vec<T> partial[kGroup][kAbreast];
  for (int q = 0; q < kGroup; ++q)
    for (int i = 0; i < kAbreast; ++i) partial[q][i] = broadcast(T(0));
  for (int64_t d = 0; d < dims; ++d) {
    Vec<T> at[kAbreast];
    for (int i = 0; i < kAbreast; ++i) at[i] = load(latents + d * size + i * kLanes<T>);
    for (int q = 0; q < kGroup; ++q) term(q, d, at, partial[q]);
  }
  for (int q = 0; q < kGroup; ++q)
    for (int i = 0; i < kAbreast; ++i) take(q, i * kLanes<T>, partial[q][i]);
}

template <typename T, int kAbreast, bool kScaled>
static void fill_energies(const Block<T>& block, int64_t size, int64_t D, const T* y, const T* s,
                          int64_t count, T* out) {
  for (int64_t start = 0; start < D; start += kSlab) {
    const int64_t dims = D - start < kSlab ? D - start : kSlab;
    for (int64_t j = 0; j < size; j += kAbreast * kLanes<T>) {
      for (int64_t q = 0; q < count; q += kGroup) {
        const T *at = y + q * D + start, *by = s + q * D + start;
        T* energy = out + q * size + j;
        const T* before = start ? energy : block.r + j;
        const int64_t of_query = start ? size : 0;
        auto term = [&](int k, int64_t d, const Vec<T>* g, Vec<T>* partial) LEBM_INLINE_LAMBDA {
          const Vec<T> query = broadcast(at[k * D + d]);
          const Vec<T> scale = kScaled ? broadcast(by[k * D + d]) : query;
          for (int i = 0; i < kAbreast; ++i) {
            const Vec<T> difference = kScaled ? fnma(scale, g[i], query) : sub(query, g[i]);
            partial[i] = fma(difference, difference, partial[i]);
          }
        };
        auto take = [&](int k, int64_t lane, Vec<T> sum_) LEBM_INLINE_LAMBDA {
          store(energy + k * size + lane, add(load(before + k * of_query + lane), sum_));
        };
        sum_panel<T, kAbreast>(block.g + start * size + j, size, dims, term, take);
      }
    }
  }
}

template <typename T>
static T least_of_row(const T* row, int64_t size) {
  Vec<T> low = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) low = min(low, load(row + j));
  return least(low);
}

// Energies from differences, for `count` queries whose y and s are rows of D. Rows of y, s and
// `out` are read and written up to a multiple of kGroup. `scaled`: some s is not 1.
template <typename T>
static void energies_of_queries(const Block<T>& block, int64_t size, int64_t D, bool scaled,
                                const T* y, const T* s, int64_t count, T* out) {
  scaled ? fill_energies<T, 2, true>(block, size, D, y, s, count, out)
         : fill_energies<T, 3, false>(block, size, D, y, s, count, out);
}

LEBM_END_TARGET
