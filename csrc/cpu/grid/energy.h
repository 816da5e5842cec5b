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

// Any D: a tile of kGroup queries by a few vectors of latents is summed in registers, so that each
// load serves several pairs. Dimensions are taken in slabs: a sum of partial sums rounds less than
// one long sum.
constexpr int64_t kSlab = 32;

// The most queries whose energies are taken together, a multiple of every kGroup.
constexpr int64_t kWideTile = 48;

LEBM_INLINE int64_t in_groups(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

// Energies as sums of squared differences. The queries' y and s are rows of D.
template <typename T, bool kScaled>
struct Differences {
  static constexpr int kAbreast = kScaled ? 2 : 3;

  const Block<T>& block;
  int64_t D;
  const T *y, *s;

  Differences from(int64_t q) const { return {block, D, y + q * D, s + q * D}; }
  const T* latents() const { return block.g; }
  // Adds the term of dimension d for query q.
  LEBM_INLINE void add_term(int64_t q, int64_t d, const Vec<T>* g, Vec<T>* sums) const {
    const Vec<T> query = broadcast(y[q * D + d]);
    const Vec<T> scale = kScaled ? broadcast(s[q * D + d]) : query;
    for (int i = 0; i < kAbreast; ++i) {
      const Vec<T> difference = kScaled ? fnma(scale, g[i], query) : sub(query, g[i]);
      sums[i] = fma(difference, difference, sums[i]);
    }
  }
  // The energies of query q and latents at j from their sums over dimensions.
  LEBM_INLINE Vec<T> complete(int64_t, int64_t j, Vec<T> sum_) const {
    return add(load(block.r + j), sum_);
  }
};

// Adds the dimensions [start, end) to the energies of a panel of latents from j on, for all
// queries: out [count][stride], whose rows are written up to a multiple of kGroup. kFirst: there
// are no earlier dimensions; kLast: there are no further ones. Not inlined: beside its caller's,
// its sums would not all stay in registers.
template <typename T, bool kFirst, bool kLast, typename Source>
__attribute__((noinline)) static void sum_slab(const Source& source, int64_t size, int64_t j,
                                               int64_t start, int64_t end, int64_t count, T* out,
                                               int64_t stride) {
  constexpr int K = Source::kAbreast;
  for (int64_t q = 0; q < count; q += kGroup, out += kGroup * stride) {
    const Source group = source.from(q);
    Vec<T> sums[kGroup][K];
    for (int k = 0; k < kGroup; ++k)
      for (int i = 0; i < K; ++i) sums[k][i] = broadcast(T(0));
    const T* at = source.latents() + start * size + j;
    for (int64_t d = start; d < end; ++d, at += size) {
      Vec<T> latents[K];
      for (int i = 0; i < K; ++i) latents[i] = load(at + i * kLanes<T>);
      for (int k = 0; k < kGroup; ++k) group.add_term(k, d, latents, sums[k]);
    }
    for (int k = 0; k < kGroup; ++k) {
      for (int i = 0; i < K; ++i) {
        T* place = out + k * stride + i * kLanes<T>;
        const Vec<T> total = kFirst ? sums[k][i] : add(load(place), sums[k][i]);
        store(place, kLast ? group.complete(k, j + i * kLanes<T>, total) : total);
      }
    }
  }
}

template <typename T, typename Source>
static void sum_panel(const Source& source, int64_t size, int64_t j, int64_t count, T* out,
                      int64_t stride) {
  const int64_t D = source.D;
  if (D <= kSlab) return sum_slab<T, true, true>(source, size, j, 0, D, count, out, stride);
  sum_slab<T, true, false>(source, size, j, 0, kSlab, count, out, stride);
  int64_t start = kSlab;
  for (; D - start > kSlab; start += kSlab)
    sum_slab<T, false, false>(source, size, j, start, start + kSlab, count, out, stride);
  sum_slab<T, false, true>(source, size, j, start, D, count, out, stride);
}

template <typename T>
static T least_of_row(const T* row, int64_t size) {
  Vec<T> low = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) low = min(low, load(row + j));
  return least(low);
}

// The energies of `count` queries against a block: `out` [count][size], whose rows are written up
// to a multiple of kGroup.
template <typename T, typename Source>
static void fill_energies(const Source& source, int64_t size, int64_t count, T* out) {
  for (int64_t j = 0; j < size; j += Source::kAbreast * kLanes<T>)
    sum_panel(source, size, j, count, out + j, size);
}

// Calls take(q, j, energies) for each query q and the latents from j on, kAbreast vectors at a
// time, while they are in the first cache.
template <typename T, typename Source, typename Take>
LEBM_INLINE void each_energy(const Source& source, int64_t size, int64_t count, const Take& take) {
  constexpr int K = Source::kAbreast;
  constexpr int64_t kWidth = K * kLanes<T>;
  alignas(64) T panel[kWideTile * kWidth];
  for (int64_t j = 0; j < size; j += kWidth) {
    sum_panel(source, size, j, count, panel, kWidth);
    for (int64_t q = 0; q < count; ++q) {
      Vec<T> energies[K];
      for (int i = 0; i < K; ++i) energies[i] = load(panel + q * kWidth + i * kLanes<T>);
      take(q, j, energies);
    }
  }
}

// Fills the rows of the marked queries alone. `spare` has room for kGroup rows.
template <typename T, typename Source>
static void fill_marked(const Source& source, int64_t size, int64_t count, const bool* marked,
                        T* out, T* spare) {
  for (int64_t first = 0; first < count; first += kGroup) {
    const int64_t last = first + kGroup < count ? first + kGroup : count;
    bool any = false;
    for (int64_t q = first; q < last; ++q) any |= marked[q];
    if (!any) continue;
    fill_energies(source.from(first), size, last - first, spare);
    for (int64_t q = first; q < last; ++q) {
      if (marked[q]) copy(spare + (q - first) * size, size, out + q * size);
    }
  }
}

LEBM_END_TARGET
