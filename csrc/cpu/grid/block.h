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
    if (sum(not_finite) != T(0) || !(highest - lowest < kHuge<T>)) return false;
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

// 2^bits for bits <= 0; 0 near the end of T's range, where products would be subnormal numbers,
// which are slow.
template <typename T>
LEBM_INLINE T weight_of(double bits) {
  return bits < Exponent<T>::normal + 6 ? T(0) : T(__builtin_exp2(bits));
}

// The arrays of a block that pack_block fills. A latent that does not count has r = kAbsent.
template <typename T>
struct BlockMemory {
  T *g, *v, *rows, *square, *r, *log2_w, *w;
  const T* latents[kMostLatents];  // where each lies in `decoded`, or null

  BlockMemory(const Problem<T>& p, int64_t b, const Grid<T>& grid, int64_t i) {
    const int64_t first = i * grid.block, at = grid.streamed ? 0 : first, D = grid.D;
    g = grid.g + at * D;
    v = grid.v + at * D;
    rows = grid.rows + at * row_length<T>(D);
    square = grid.square + at;
    r = grid.r + at;
    log2_w = grid.log2_w + at;
    w = grid.w + at;
    for (int64_t j = 0; j < grid.block; ++j)
      latents[j] = first + j < p.N ? p.decoded.at(b, grid.place(first + j)) : nullptr;
  }
  bool counts(int64_t j) const { return r[j] != kAbsent<T>; }
};

// Sets log2_w, w and r of a block; returns its weight. `has_weight` [block]: no log-weight of -inf.
template <typename T>
static double weigh_block(const Problem<T>& p, int64_t b, double largest, const Grid<T>& grid,
                          int64_t i, const BlockMemory<T>& own, bool* has_weight,
                          BlockFlags& flags) {
  Total<T> weight{};
  for (int64_t j = 0; j < grid.block; ++j) {
    const int64_t at = i * grid.block + j, n = grid.place(at < p.N ? at : 0);
    const double log_weight = at >= p.N       ? -__builtin_inf()
                              : grid.weighted ? double(*p.log_weight.at(b, n))
                                              : 0.0;
    const double l = log_weight - largest;
    has_weight[j] = log_weight != -__builtin_inf();
    // The difference of two log-weights may be out of T's range.
    const double bits = l * kLog2E;
    own.log2_w[j] = T(bits < -kMost<T> ? -kMost<T> : bits);
    own.w[j] = has_weight[j] ? weight_of<T>(bits) : T(0);
    weight += own.w[j];
    own.r[j] = !has_weight[j]         ? kAbsent<T>
               : p.latent_energy.data ? *p.latent_energy.at(b, n)
                                      : T(0);
    if (!has_weight[j]) continue;
    const T r = own.r[j];
    flags.has_nan |= l != l || r != r || r == -__builtin_inf();
    flags.has_infinite |= r == __builtin_inf();
  }
  return weight;
}

// g [D][block] from the latents, a few at a time so that whole cache lines are written.
template <typename T>
static void gather(const BlockMemory<T>& own, int64_t block, int64_t D, int64_t stride) {
  constexpr int kAtOnce = 16;
  const T zero = 0;
  for (int64_t j = 0; j < block; j += kAtOnce) {
    const T* from[kAtOnce];
    int64_t step[kAtOnce];
    for (int k = 0; k < kAtOnce; ++k) {
      const bool given = own.latents[j + k];
      from[k] = given ? own.latents[j + k] : &zero;
      step[k] = given ? stride : 0;
    }
    T* g = own.g + j;
    for (int64_t d = 0; d < D; ++d, g += block) {
      for (int k = 0; k < kAtOnce; ++k) g[k] = from[k][d * step[k]];
    }
  }
}

// Looks for latents that are not finite: infinite ones don't count. Then clears all that don't.
template <typename T>
static void drop_latents(const Grid<T>& grid, const BlockMemory<T>& own, const bool* has_weight,
                         BlockFlags& flags) {
  const int64_t block = grid.block, D = grid.D;
  for (int64_t j = 0; j < block; j += kLanes<T>) {
    Vec<T> not_finite = broadcast(T(0));
    for (int64_t d = 0; d < D; ++d)
      not_finite = fma(load(own.g + d * block + j), broadcast(T(0)), not_finite);
    T found[kLanes<T>];
    store(found, not_finite);
    for (int64_t k = j; k < j + kLanes<T>; ++k) {
      if (found[k - j] == 0 || !has_weight[k]) continue;
      for (int64_t d = 0; d < D; ++d) {
        const T x = own.g[d * block + k];
        flags.has_nan |= x != x;
        if (x != kAbsent<T> && x != -kAbsent<T>) continue;
        flags.has_infinite = true;
        own.r[k] = kAbsent<T>;
      }
    }
  }
  for (int64_t j = 0; j < block; ++j) {
    if (own.counts(j)) continue;
    own.log2_w[j] = -Exponent<T>::infinity;
    for (int64_t d = 0; d < D; ++d) own.g[d * block + j] = T(0);
  }
}

// Bounds, centre and v of a block, from g and r. `num` latents count.
template <typename T>
static void centre_block(const Grid<T>& grid, int64_t i, const BlockMemory<T>& own, int64_t num) {
  const int64_t block = grid.block, D = grid.D;
  const Vec<T> absent = broadcast(kAbsent<T>), zero = broadcast(T(0));
  for (int64_t d = 0; d < D; ++d) {
    const T* g = own.g + d * block;
    Vec<T> lows = absent, minus_highs = absent, above = zero;
    for (int64_t j = 0; j < block; j += kLanes<T>) {
      const Vec<T> r = load(own.r + j), x = load(g + j);
      lows = min(lows, select_equal(r, absent, absent, x));
      minus_highs = min(minus_highs, select_equal(r, absent, absent, sub(zero, x)));
    }
    const T low = least(lows), high = -least(minus_highs);
    grid.low[i * D + d] = low;
    grid.high[i * D + d] = high;
    const bool narrow = high - low < kHuge<T>;
    for (int64_t j = 0; narrow && !grid.leaves && j < block; j += kLanes<T>)
      above =
          add(above, select_equal(load(own.r + j), absent, zero, sub(load(g + j), broadcast(low))));
    if (num == 0) {
      set_sides(grid, i, d, T(0), T(0), T(0));
    } else {
      const T mean = narrow ? T(double(low) + double(sum(above)) / num) : middle_of(low, high);
      set_sides(grid, i, d, mean, low, high);
    }
    const Vec<T> centre = broadcast(grid.centre[i * D + d]);
    for (int64_t j = 0; j < block; j += kLanes<T>) {
      const Vec<T> v = sub(load(g + j), centre);
      store(own.v + d * block + j, select_equal(load(own.r + j), absent, zero, v));
    }
  }
}

// At D > 4: square, from v. Returns the largest |v|^2.
template <typename T>
static T square_block(const Grid<T>& grid, const BlockMemory<T>& own) {
  const int64_t block = grid.block, D = grid.D;
  double square[kMostLatents], part[kMostLatents];
  fill(square, block, 0.0);
  for (int64_t start = 0; start < D; start += 16) {
    // Sums of sixteen round less than one long sum.
    const int64_t end = start + 16 < D ? start + 16 : D;
    fill(part, block, 0.0);
    for (int64_t d = start; d < end; ++d) {
      const T* v = own.v + d * block;
      for (int64_t j = 0; j < block; ++j) part[j] += double(v[j]) * double(v[j]);
    }
    for (int64_t j = 0; j < block; ++j) square[j] += part[j];
  }
  double largest = 0;
  for (int64_t j = 0; j < block; ++j) {
    if (D >= kProductDimensions) own.square[j] = T(square[j] + double(own.r[j]));
    largest = square[j] > largest ? square[j] : largest;
  }
  return T(largest);
}

// At D > 4: rows, from the latents.
template <typename T>
static void pack_rows(const Grid<T>& grid, int64_t i, const BlockMemory<T>& own, int64_t stride) {
  const int64_t whole = whole_vectors<T>(grid.D), row = row_length<T>(grid.D);
  const T* centre = grid.centre + i * grid.D;
  for (int64_t j = 0; j < grid.block; ++j) {
    const T* from = own.latents[j];
    T* out = own.rows + j * row;
    if (!own.counts(j)) {
      fill(out, whole, T(0));
    } else if (stride == 1) {
      for (int64_t d = 0; d < whole; d += kLanes<T>)
        store(out + d, sub(load(from + d), load(centre + d)));
    } else {
      for (int64_t d = 0; d < whole; ++d) out[d] = from[d * stride] - centre[d];
    }
  }
}

template <typename T>
static BlockFlags pack_block(const Problem<T>& p, int64_t b, double largest, const Grid<T>& grid,
                             int64_t i) {
  const BlockMemory<T> own(p, b, grid, i);
  BlockFlags flags{false, false, __builtin_inf(), -__builtin_inf()};
  bool has_weight[kMostLatents];
  grid.block_weight[i] = weigh_block(p, b, largest, grid, i, own, has_weight, flags);
  gather(own, grid.block, grid.D, p.decoded.stride[2]);
  drop_latents(grid, own, has_weight, flags);
  int64_t num = 0;
  for (int64_t j = 0; j < grid.block; ++j) {
    if (!own.counts(j)) continue;
    ++num;
    flags.r_low = own.r[j] < flags.r_low ? own.r[j] : flags.r_low;
    flags.r_high = own.r[j] > flags.r_high ? own.r[j] : flags.r_high;
  }
  grid.whole[i] = num == grid.block;
  centre_block(grid, i, own, num);
  if (grid.D > kNarrow) {
    grid.extent[i] = square_block(grid, own);
    pack_rows(grid, i, own, p.decoded.stride[2]);
  }
  grid.r_floor[i] = num ? T(flags.r_low) : T(1);
  grid.r_top[i] = num ? T(flags.r_high) : T(0);
  return flags;
}

LEBM_END_TARGET
