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
#include "../grid/outer_product.h"
#include "../grid/powers.h"
#include "../grid/product.h"
#include "block.h"
#include "slope.h"

LEBM_BEGIN_TARGET

// Scratch memory of a tile of queries.
template <typename T>
struct WideScratch {
  T* p;               // [kWideTile][block], energies, then p
  T* spare;           // [kGroup][block]
  T* u;               // [kWideTile][D], y - c
  T *first, *second;  // [kWideTile][D], moments

  static int64_t count(int64_t D, int64_t block) {
    return (kWideTile + kGroup) * block + 3 * kWideTile * D;
  }
  WideScratch(T* memory, int64_t D, int64_t block) {
    const int64_t rows = kWideTile * D;
    p = memory;
    spare = p + kWideTile * block;
    u = spare + kGroup * block;
    first = u + rows;
    second = first + rows;
  }
};

// One block's share of a query's sums: the sum of p, and the factor by which the numbers in the
// query's row must be multiplied to give p.
struct Mass {
  double sum, factor;
};

// The moments of one query, whose p lie in a row: of differences y - s g or, where the posterior
// mean is wanted, of g itself. kDims dimensions from `start` on.
template <typename T, Level kLevel, bool kDifferences, int kDims>
static void moments_of_dims(const Block<T>& block, int64_t size, int64_t start,
                            const Query<T>& query, const Mass& mass, const T* p, Vectors& vectors) {
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
    const double one = mass.factor * sum(firsts[i]), two = mass.factor * sum(seconds[i]);
    if (!kDifferences) {
      add_moments(d, one, two, mass.sum, 0.0, query.y[d], query.s[d], vectors);
      continue;
    }
    if (vectors.residual) vectors.residual[d] += one;
    if (vectors.stretch) vectors.stretch[d] += two;
  }
}

template <typename T, Level kLevel, bool kDifferences>
static void moments_of_one(const Block<T>& block, int64_t size, int64_t D, const Query<T>& query,
                           const Mass& mass, const T* p, Vectors& vectors) {
  int64_t d = 0;
  for (; d + 4 <= D; d += 4)
    moments_of_dims<T, kLevel, kDifferences, 4>(block, size, d, query, mass, p, vectors);
  for (; d < D; ++d)
    moments_of_dims<T, kLevel, kDifferences, 1>(block, size, d, query, mass, p, vectors);
}

// add_moments for all dimensions, from the moments about the block's centre.
template <typename T>
static void add_moments_of_block(const Block<T>& block, int64_t D, const Query<T>& query,
                                 const Mass& mass, const T* first, const T* second,
                                 Vectors& vectors) {
  const T *y = query.y, *s = query.s, *centre = block.centre;
  const double factor = mass.factor;
  for (int64_t d = 0; vectors.residual && d < D; ++d) {
    const double u = double(y[d]) - double(s[d]) * centre[d];
    vectors.residual[d] += u * mass.sum - double(s[d]) * (factor * first[d]);
  }
  for (int64_t d = 0; vectors.stretch && d < D; ++d) {
    const double scale = s[d], c = centre[d], u = double(y[d]) - scale * c;
    const double one = factor * first[d], two = factor * second[d];
    vectors.stretch[d] += c * (u * mass.sum - scale * one) + u * one - scale * two;
  }
}

// The moments of a tile from p in the scratch memory; `masses` are those of the block.
template <typename T, Level kLevel>
static void add_moments_of_tile(const Grid<T>& grid, const Block<T>& block, const Query<T>* queries,
                                int64_t count, const Mass* masses, const T* smallest,
                                const WideScratch<T>& scratch, Vectors* vectors) {
  const int64_t size = grid.block, D = grid.D, i = block.first / size;
  const bool wide = !(grid.extent[i] < kHuge<T>);
  // The queries that are summed as a product; their p lie side by side.
  int64_t summed[kWideTile], num = 0;
  for (int64_t q = 0; q < count; ++q) {
    // For a query that summed nothing, p still holds energies.
    if (masses[q].sum == 0) continue;
    const T* p = scratch.p + q * size;
    if (vectors[q].mean) {
      moments_of_one<T, kLevel, false>(block, size, D, queries[q], masses[q], p, vectors[q]);
    } else if (wide ||
               is_too_near(grid, i, smallest[q], queries[q].rate, queries[q].square_scale)) {
      // Squares may overflow in a huge block, where differences times a p of 0 are 0.
      moments_of_one<T, kLevel, true>(block, size, D, queries[q], masses[q], p, vectors[q]);
    } else {
      if (num != q) copy(p, size, scratch.p + num * size);
      summed[num++] = q;
    }
  }
  if (num == 0) return;
  // Rows up to a multiple of kSums are multiplied too.
  const int64_t rows = (num + kSums - 1) / kSums * kSums;
  fill(scratch.p + num * size, (rows - num) * size, T(0));
  const bool squares = kLevel == kAllMoments && vectors[0].stretch;
  sum_over_latents<T, false>(scratch.p, block, size, D, num, scratch.first);
  if (squares) sum_over_latents<T, true>(scratch.p, block, size, D, num, scratch.second);
  for (int64_t k = 0; k < num; ++k) {
    const int64_t q = summed[k];
    add_moments_of_block(block, D, queries[q], masses[q], scratch.first + k * D,
                         scratch.second + k * D, vectors[q]);
  }
}

// The sums of a tile in one block, from panels of energies in the first cache.
template <typename T>
struct TileSums {
  Vec<T> sum[kWideTile], least[kWideTile];

  template <bool kStore, typename Source>
  void take(const Source& source, const TilePowers<T>& powers, int64_t size, int64_t count, T* p) {
    using Power = Exp2<T>;
    constexpr int K = Source::kAbreast;
    const Power power;
    for (int64_t q = 0; q < count; ++q) {
      sum[q] = broadcast(T(0));
      least[q] = broadcast(Exponent<T>::infinity);
    }
    each_energy<T>(source, size, count,
                   [&](int64_t q, int64_t j, const auto& energies) LEBM_INLINE_LAMBDA {
                     Vec<T> of_pair[K], scale[K], low = least[q], total = sum[q];
                     powers.template take<kStore>(power, q, energies, of_pair, scale);
                     for (int i = 0; i < K; ++i) {
                       low = min(low, energies[i]);
                       if constexpr (kStore) {
                         of_pair[i] = Power::value(of_pair[i], scale[i]);
                         store(p + q * size + j + i * kLanes<T>, of_pair[i]);
                         total = add(total, of_pair[i]);
                       } else {
                         total = Power::add_to(total, of_pair[i], scale[i]);
                       }
                     }
                     least[q] = low;
                     sum[q] = total;
                   });
  }
};

// A block may have energies below the m of earlier blocks. Then exponents are positive, and the
// larger they are, the more they round. Up to kLag bits are allowed, or as many as the rounding of
// the energies hides in any case. kMostOfLag keeps 2^x within the range of T.
constexpr double kLag = 8, kMostOfLag = 60;

// A late query costs the energies of a group of kGroup queries once more, the more the higher D is.
// Energies first cost one more reading of each energy, at any D. So energies come first beyond
// kMostOfLate late queries times D, and always beyond kPlainDimensions.
constexpr int64_t kMostOfLate = 40, kPlainDimensions = 128;

// A tile of at most kWideTile queries against a range of blocks.
template <typename T, Level kLevel>
struct WidePass {
  const Grid<T>& grid;
  bool exact;  // m and its index must be those of the least energy itself
  WideTile<T>& tile;
  Query<T>* queries;
  const WideScratch<T>& scratch;
  Sums<T>* sums;
  Vectors* vectors;
  TileState<T> state = {};
  T smallest[kWideTile] = {};  // of the block at hand
  Mass masses[kWideTile] = {};
  TilePowers<T> powers = {};
  double prepared[kWideTile] = {};  // the m that `powers` are relative to
  bool usable[kWideTile] = {};
  bool careful = false;  // the next block's energies come before its exponentials

  void take_energies(const Block<T>& block) {
    energies_of_tile(grid, block, tile, state, scratch.p, scratch.spare, smallest);
  }

  void begin(const Block<T>& block) {
    for (int64_t q = 0; q < tile.count; ++q) state.shift[q] = T(sums[q].shift);
    if (takes_products(grid, tile.scaled)) tile.centre(block.centre, grid.D);
  }

  // Adds a block from the energies in the query's row.
  void add_row(const Block<T>& block, int64_t q) {
    BlockSums<T> of_block;
    add_block<T, 0, kLevel>(grid, block, queries[q], smallest[q], scratch.p + q * grid.block,
                            sums[q], vectors[q], of_block);
    masses[q] = {of_block.mass, 1};
  }

  // Whether exponents relative to the m before this block would be too large.
  bool is_late(int64_t q) const {
    const double rate = queries[q].rate, lag = rate * (double(state.shift[q]) - smallest[q]);
    return !(lag <= kLag + rate * smallest[q] && lag <= kMostOfLag);
  }

  // Whether all p of a query in this block are 0, relative to the m before it.
  bool brings_nothing(int64_t q) const {
    const double excess = double(smallest[q]) - double(state.shift[q]);
    return double(queries[q].rate) * excess > -double(Exponent<T>::lowest);
  }

  // Whether this block's exponentials can be relative to the m of earlier blocks.
  bool is_plain() const {
    bool plain = kLevel < kAllMoments && grid.D <= kPlainDimensions && !grid.weighted && !exact;
    for (int64_t q = 0; q < tile.count; ++q)
      plain &= queries[q].regime == kWarm && is_finite(sums[q].shift);
    return plain;
  }

  // Prepares `powers` for the m of every query; returns whether all queries can use them.
  bool prepare() {
    bool serves = true;
    for (int64_t q = 0; q < tile.count; ++q) {
      if (prepared[q] != sums[q].shift) {
        usable[q] = powers.set(q, queries[q].rate, sums[q].shift, 0.0);
        prepared[q] = sums[q].shift;
      }
      serves &= usable[q];
    }
    return serves;
  }

  // Computes exponentials panel by panel, relative to the m of earlier blocks. The
  // energies of some queries are computed once more: of the lost from differences, since their
  // products are too inexact, and of the late, whose exponents would be too large.
  void add_plain(const Block<T>& block) {
    const int64_t size = grid.block, D = grid.D, count = tile.count;
    const bool products = takes_products(grid, tile.scaled);
    TileSums<T> in_lanes;
    bool lost[kWideTile] = {}, late[kWideTile], any_late = false;
    tile.with_source(block, D, products, [&](const auto& source) {
      in_lanes.template take<kLevel == kMean>(source, powers, size, count, scratch.p);
      for (int64_t q = 0; q < count; ++q) smallest[q] = least(in_lanes.least[q]);
      if (products)
        judge(state, count, tile.square, grid.extent[block.first / size], smallest, D, lost);
      for (int64_t q = 0; q < count; ++q) {
        late[q] = !lost[q] && is_late(q);
        any_late |= late[q];
      }
      if (any_late) fill_marked(source, size, count, late, scratch.p, scratch.spare);
    });
    if (products) {
      fill_marked(Differences<T, false>{block, D, tile.y, tile.s}, size, count, lost, scratch.p,
                  scratch.spare);
    }
    for (int64_t q = 0; q < count; ++q) {
      if (lost[q]) smallest[q] = least_of_row(scratch.p + q * size, size);
      if (lost[q] || late[q]) {
        add_row(block, q);
        continue;
      }
      masses[q] = {powers.factor[q] * sum(in_lanes.sum[q]), powers.factor[q]};
      sums[q].sum += masses[q].sum;
      sums[q].mass += masses[q].sum;
      sums[q].weight += grid.block_weight[block.first / size];
    }
  }

  void add(const Block<T>& block) {
    begin(block);
    const bool plain = !careful && is_plain() && prepare();
    if (plain) {
      add_plain(block);
    } else {
      take_energies(block);
      for (int64_t q = 0; q < tile.count; ++q) add_row(block, q);
    }
    int64_t num_zero = 0, num_late = 0;
    for (int64_t q = 0; q < tile.count; ++q) {
      num_zero += brings_nothing(q);
      num_late += is_finite(state.shift[q]) && is_late(q);
    }
    // Exponentials of blocks that don't matter, or that need a lower m, would be wasted work.
    careful = 2 * num_zero > tile.count || num_late * grid.D > kMostOfLate;
    if constexpr (kLevel >= kMean) {
      if (vectors[0].residual || vectors[0].stretch || vectors[0].mean)
        add_moments_of_tile<T, kLevel>(grid, block, queries, tile.count, masses, smallest, scratch,
                                       vectors);
    }
    // Lowers m to the block's least energy. In the other branch, add_block has.
    for (int64_t q = 0; plain && q < tile.count; ++q) {
      if (smallest[q] < T(sums[q].shift))
        lower_shift(queries[q], false, sums[q], vectors[q], grid.D, smallest[q]);
    }
  }

  // For kSlope queries: moves the reference energy to that of the latent at `place`, see
  // settle_gap.
  void settle(int64_t place) {
    const Block<T> block = grid.at(place / grid.block);
    begin(block);
    take_energies(block);
    for (int64_t q = 0; q < tile.count; ++q) {
      if (queries[q].regime == kSlope)
        settle_gap(sums[q].shift, scratch.p[q * grid.block + place % grid.block], queries[q]);
    }
    state.postpone = 0;
  }
};

// The queries' y and s lie in consecutive rows. `exact`: m and its index must be those of the least
// energy itself. `settle`: the place of the latent for settle_gap, or -1.
template <typename T, Level kLevel>
static void pass_over_wide_tile(const Grid<T>& grid, int64_t first_block, int64_t last_block,
                                bool scaled, bool exact, int64_t settle, Query<T>* queries,
                                int64_t count, T* memory, Sums<T>* sums, Vectors* vectors) {
  const WideScratch<T> scratch(memory, grid.D, grid.block);
  WideTile<T> tile{queries[0].y, queries[0].s, count, scaled, scratch.u, grid.D};
  WidePass<T, kLevel> pass{grid, exact, tile, queries, scratch, sums, vectors};
  pass.state.weighted = grid.weighted;
  pass.state.exact = exact;
  for (int64_t q = 0; q < count; ++q) {
    pass.state.rate[q] = queries[q].rate;
    pass.prepared[q] = __builtin_inf();
  }
  if (settle >= 0) pass.settle(settle);
  for (int64_t i = first_block; i < last_block; ++i) pass.add(grid.at(i));
}

LEBM_END_TARGET
