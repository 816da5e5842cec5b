// Packs one block of latents and finds its centre and bounds.
#pragma once

#include "../../problem.h"
#include "layout.h"

LEBM_BEGIN_TARGET

template <typename T>
LEBM_INLINE T middle_of(T low, T high) {
  return T(0.5 * (double(low) + double(high)));
}

// The longer distance from a point inside a bounding box to its two sides.
template <typename T>
LEBM_INLINE T half_of(T centre, T low, T high) {
  const T above = high - centre, below = centre - low;
  return above > below ? above : below;
}

// Facts about the latents of one block; pack_blocks merges them over the blocks.
struct BlockFlags {
  bool has_nan, has_infinite;
  double r_low, r_high;
};

// Sets the centre and size of a block in dimension d; call it in the order of d. `mean` is the mean
// of the block's latents.
template <typename T>
static void set_sides(const Grid<T>& grid, int64_t i, int64_t d, T mean, T low, T high) {
  // Series want |v| as small as possible; sums of pairs don't want all v large for one latent far
  // away.
  const T centre = grid.leaves ? middle_of(low, high) : mean;
  const T half = half_of(centre, low, high);
  grid.centre[i * grid.D + d] = centre;
  grid.half[i * grid.D + d] = half;
  grid.extent[i] = (d ? grid.extent[i] : T(0)) + half * half;
}

// Packs a block of a plain grid if all of its latents count and no sum of them could overflow;
// returns false otherwise. `g` and `v` may be the block's place in the grid or scratch memory.
template <typename T>
static bool pack_whole_block(const T* x, const Grid<T>& grid, int64_t i, T* g, T* v) {
  const int64_t block = grid.block, D = grid.D;
  transpose(x, D, block, g);
  for (int64_t d = 0; d < D; ++d) {
    const Vec<T> first = broadcast(x[d]);
    Vec<T> low = first, minus_high = sub(broadcast(T(0)), first);
    Vec<T> from_first = broadcast(T(0)), not_finite = broadcast(T(0));
    for (int64_t j = d * block; j < (d + 1) * block; j += kLanes<T>) {
      const Vec<T> y = load(g + j);
      low = min(low, y);
      minus_high = min(minus_high, sub(broadcast(T(0)), y));
      from_first = add(from_first, sub(y, first));
      not_finite = fma(y, broadcast(T(0)), not_finite);
    }
    const T lowest = least(low), highest = -least(minus_high);
    if (sum(not_finite) != T(0) || !(highest - lowest < T(1e30))) return false;
    grid.low[i * D + d] = lowest;
    grid.high[i * D + d] = highest;
    set_sides(grid, i, d, x[d] + sum(from_first) / T(block), lowest, highest);
    const Vec<T> of_block = broadcast(grid.centre[i * D + d]);
    for (int64_t j = d * block; j < (d + 1) * block; j += kLanes<T>)
      store(v + j, sub(load(g + j), of_block));
  }
  grid.whole[i] = true;
  grid.block_weight[i] = double(block);
  grid.r_floor[i] = grid.r_top[i] = T(0);
  return true;
}

// Block i, streamed or not; finds its bounds if it has none yet. Fails as pack_whole_block does.
template <typename T>
static bool bounded_block(const Grid<T>& grid, int64_t i, Block<T>& block) {
  if (grid.bounded || !grid.is_streamed(i)) {
    block = grid.at(i);
    return true;
  }
  const int64_t size = grid.D * grid.block;
  block = grid.unpacked(i);
  return pack_whole_block(grid.streamed + i * size, grid, i, grid.scratch, grid.scratch + size);
}

// At D > 4, v lies latent by latent, since it is read several dimensions at a time. Returns the
// largest |v|^2.
template <typename T>
static T pack_rows(const Grid<T>& grid, int64_t i, T* v) {
  const int64_t block = grid.block, D = grid.D, row = row_length<T>(D);
  const T *g = grid.g + i * D * block, *centre = grid.centre + i * D, *r = grid.r + i * block;
  const bool many = D >= kProductDimensions;
  double square[kMostLatents], part[kMostLatents];
  fill(square, block, 0.0);
  fill(part, block, 0.0);
  for (int64_t d = 0; d < D; ++d) {
    T* across = many ? grid.across + (i * D + d) * block : nullptr;
    for (int64_t j = 0; j < block; ++j) {
      const T x = r[j] == kAbsent<T> ? T(0) : g[d * block + j] - centre[d];
      v[j * row + d] = x;
      if (many) across[j] = x;
      part[j] += double(x) * x;
    }
    // Sums of sixteen round less than one long sum.
    if (d % 16 != 15 && d != D - 1) continue;
    for (int64_t j = 0; j < block; ++j) square[j] += part[j];
    fill(part, block, 0.0);
  }
  T largest = 0;
  for (int64_t j = 0; j < block; ++j) {
    for (int64_t d = D; d < row; ++d) v[j * row + d] = T(0);
    if (many) grid.square[i * block + j] = T(square[j] + double(r[j]));
    if (square[j] > largest) largest = T(square[j]);
  }
  return largest;
}

// 2^bits for bits <= 0; 0 near the end of T's range, where products would be subnormal numbers,
// which are slow.
template <typename T>
LEBM_INLINE T weight_of(double bits) {
  return bits < Exponent<T>::normal + 6 ? T(0) : T(__builtin_exp2(bits));
}

template <typename T>
static BlockFlags pack_block(const Problem<T>& p, int64_t b, double largest, const Grid<T>& grid,
                             int64_t i) {
  const int64_t block = grid.block, D = grid.D, first = i * block, slot = grid.streamed ? 0 : i;
  T *g = grid.g + slot * D * block, *v = grid.v + slot * row_length<T>(D) * block;
  T* r = grid.r + slot * block;
  T *log2_w = grid.log2_w + slot * block, *w = grid.w + slot * block;
  BlockFlags flags{false, false, __builtin_inf(), -__builtin_inf()};
  Total<T> weight{};
  for (int64_t d = 0; d < D; ++d) {
    grid.low[i * D + d] = kAbsent<T>;
    grid.high[i * D + d] = -kAbsent<T>;
  }
  grid.whole[i] = true;
  for (int64_t j = 0; j < block; ++j) {
    const int64_t n = grid.order && first + j < p.N ? grid.order[first + j] : first + j;
    const double log_weight = n >= p.N        ? -__builtin_inf()
                              : grid.weighted ? double(*p.log_weight.at(b, n))
                                              : 0.0;
    const double l = log_weight - largest;
    bool present = log_weight != -__builtin_inf();
    // The difference of two log-weights may be out of T's range.
    const double bits = l * 1.4426950408889634074;
    log2_w[j] = T(bits < -kMost<T> ? -kMost<T> : bits);
    w[j] = present ? weight_of<T>(bits) : T(0);
    r[j] = present && p.latent_energy.data ? *p.latent_energy.at(b, n) : T(0);
    weight += w[j];
    if (present) {
      flags.has_nan |= l != l || r[j] != r[j] || r[j] == -__builtin_inf();
      bool infinite = r[j] == __builtin_inf();
      for (int64_t d = 0; d < D; ++d) {
        const double x = p.decoded.at(b, n)[d * p.decoded.stride[2]];
        flags.has_nan |= x != x;
        infinite |= x == __builtin_inf() || x == -__builtin_inf();
      }
      flags.has_infinite |= infinite;
      present = !infinite;
    }
    if (!present) {
      r[j] = kAbsent<T>;
      log2_w[j] = -Exponent<T>::infinity;
      grid.whole[i] = false;
    } else {
      flags.r_low = r[j] < flags.r_low ? r[j] : flags.r_low;
      flags.r_high = r[j] > flags.r_high ? r[j] : flags.r_high;
    }
    for (int64_t d = 0; d < D; ++d) {
      const T x = present ? p.decoded.at(b, n)[d * p.decoded.stride[2]] : T(0);
      g[d * block + j] = x;
      if (present && x < grid.low[i * D + d]) grid.low[i * D + d] = x;
      if (present && x > grid.high[i * D + d]) grid.high[i * D + d] = x;
    }
  }
  for (int64_t d = 0; d < D; ++d) {
    const T low = grid.low[i * D + d], high = grid.high[i * D + d];
    double mean = 0, count = 0;
    for (int64_t j = 0; j < block && !grid.leaves && low <= high; ++j) {
      if (r[j] == kAbsent<T>) continue;
      mean += double(g[d * block + j]) - double(low);
      count += 1;
    }
    const T about = count ? T(double(low) + mean / count) : T(0);
    low <= high ? set_sides(grid, i, d, about, low, high) : set_sides(grid, i, d, T(0), T(0), T(0));
    const T centre = grid.centre[i * D + d];
    for (int64_t j = 0; j < block && D <= kNarrow; ++j)
      v[d * block + j] = g[d * block + j] - centre;
  }
  if (D > kNarrow) grid.extent[i] = pack_rows(grid, i, v);
  grid.block_weight[i] = weight;
  grid.r_floor[i] = flags.r_low <= flags.r_high ? T(flags.r_low) : T(1);
  grid.r_top[i] = flags.r_low <= flags.r_high ? T(flags.r_high) : T(0);
  return flags;
}

LEBM_END_TARGET
