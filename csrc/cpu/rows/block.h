// Adds one block of latents to the sums of one query, from its energies E[block]:
//
//     p[j] = w[j] exp(-beta (E[j] - m)),   sum_j p,   sum_j p (y - s g),   sum_j p g (y - s g),
//     sum_j p g, as far as they are wanted.
#pragma once

#include "../grid/grid.h"
#include "../grid/layout.h"
#include "exponentials.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// The first latent, in the order given, whose energy is `smallest`, if it comes before `bound`.
template <typename T>
static int64_t first_minimum(const Grid<T>& grid, const Block<T>& block, const T* energy,
                             T smallest, int64_t bound) {
  int64_t index = bound;
  for (int64_t j = 0; j < grid.block; ++j) {
    if (energy[j] != smallest) continue;
    const int64_t n = grid.order ? grid.order[block.first + j] : block.first + j;
    if (n < index) index = n;
    if (!grid.order) break;
  }
  return index;
}

// Moments about the block's centre cost least. Their error is a rounding of the block's size, which
// would show where the query lies nearer to a latent than that: there, differences y - s g are
// summed instead. The posterior mean is of the latents' size, and is summed as it stands.
template <typename T, int kD>
LEBM_INLINE bool is_near(const Grid<T>& grid, int64_t i, const T* s, T smallest, const Vectors& v) {
  T size = 0;
  for (int d = 0; d < kD; ++d) {
    const T half = s[d] * grid.half[i * kD + d];
    size += half * half;
  }
  return !v.mean && (grid.has_few_latents() || smallest - grid.r_top[i] < size);
}

// At beta = inf: adds the minima of a block, with their weights. They are usually few, so no
// vectors are used; if they are many, sums of sixteen round less than one long sum.
template <typename T>
static void add_minima(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T m, T offset,
                       const T* energy, Sums<T>& a, Vectors& v) {
  const int64_t D = grid.D, size = grid.block;
  auto weight = [&](int64_t j) {
    return energy[j] != m  ? 0.0
           : grid.weighted ? __builtin_exp2(double(block.log2_w[j]) - offset)
                           : 1.0;
  };
  for (int64_t start = 0; start < size; start += 16) {
    double mass = 0;
    for (int64_t j = start; j < start + 16; ++j) mass += weight(j);
    if (mass == 0) continue;
    a.sum += mass;
    a.mass += mass;
    for (int64_t d = 0; d < D; ++d) {
      double residual = 0, stretch = 0, mean = 0;
      for (int64_t j = start; j < start + 16; ++j) {
        const double w = weight(j);
        if (w == 0) continue;
        const double g = block.g[d * size + j], difference = q.y[d] - q.s[d] * g;
        residual += w * difference;
        stretch += w * difference * g;
        mean += w * g;
      }
      if (v.residual) v.residual[d] += residual;
      if (v.stretch) v.stretch[d] += stretch;
      if (v.mean) v.mean[d] += mean;
    }
  }
}

// The block's g without the latents out of reach, in `memory`.
template <typename T>
static const T* without_far(const Block<T>& block, int64_t D, int64_t size, const T* energy,
                            T* memory) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t j = 0; j < size; ++j)
      memory[d * size + j] = energy[j] < kAbsent<T> ? block.g[d * size + j] : T(0);
  return memory;
}

// Moves the shift to the least energy of the block, if that is lower, and keeps the index of the
// least energy where it is wanted. kSlope needs the m that F - m was found with.
template <typename T>
static void meet_minimum(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T smallest,
                         const T* energy, Sums<T>& a, Vectors& v) {
  if (smallest < T(a.shift) && q.regime != kSlope) {
    lower_shift(q, grid.weighted, a, v, grid.D, smallest);
    if (a.index >= 0) a.index = first_minimum(grid, block, energy, smallest, grid.N);
  } else if (grid.order && a.index >= 0 && smallest == T(a.shift)) {
    a.index = first_minimum(grid, block, energy, smallest, a.index);
  }
}

// The offset of a weighted sum, raised to what the block needs; 0 for other sums.
template <typename T>
static T offset_of(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T m,
                   const T* energy, Sums<T>& a, Vectors& v) {
  if (!grid.weighted || (q.regime != kWarm && q.regime != kCold)) return T(0);
  if (a.offset < 0) {
    const T largest = q.regime == kCold
                          ? largest_exponent<T, true>(block, grid.block, q.rate, m, energy)
                          : largest_exponent<T, false>(block, grid.block, q.rate, m, energy);
    // No exponent exceeds 0, and a sum that reaches 2^-10 needs no offset: a p that counts as 0
    // is far less.
    raise_offset(a, v, grid.D, largest > -10 ? 0.0 : largest);
  }
  return T(a.offset);
}

// What is summed beside p: at D <= 4 sums of p x and p x^2 for x = v or, with kDifferences, of
// p (y - s g) and p (y - s g) g. At D > 4 p itself is stored, and rows/wide.h sums.
template <typename T, int kD, Level kLevel, bool kDifferences>
struct BlockMoments {
  static constexpr int kDims = kD ? kD : 1;
  static constexpr bool kSums = kD > 0 && kLevel >= kMean;

  const BlockOfQuery<T>& of;
  const T* x;                            // [D][block]: g, or v about the centre
  Vec<T> first[kDims], second[kDims];    // of a run
  Vec<T> firsts[kDims], seconds[kDims];  // of all runs

  LEBM_INLINE BlockMoments(const BlockOfQuery<T>& of, const T* x) : of(of), x(x) {
    const Vec<T> zero = broadcast(T(0));
    for (int d = 0; d < kD; ++d) first[d] = second[d] = firsts[d] = seconds[d] = zero;
  }

  LEBM_INLINE void add_p(int64_t j, Vec<T> p) {
    if constexpr (kD == 0 && kLevel >= kMean) store(of.energy + j, p);
    if constexpr (kSums) {
      for (int d = 0; d < kD; ++d) add_dimension(d, p, load(x + d * of.grid.block + j));
    }
  }

  LEBM_INLINE void add_dimension(int d, Vec<T> p, Vec<T> x_d) {
    if constexpr (kDifferences) {
      const Vec<T> s = broadcast(of.query.s[d]), y = broadcast(of.query.y[d]);
      const Vec<T> pull = mul(p, fnma(s, x_d, y));
      first[d] = add(first[d], pull);
      if constexpr (kLevel == kAllMoments) second[d] = fma(pull, x_d, second[d]);
    } else if constexpr (kLevel == kAllMoments) {
      const Vec<T> px = mul(p, x_d);
      first[d] = add(first[d], px);
      second[d] = fma(px, x_d, second[d]);
    } else {
      first[d] = fma(p, x_d, first[d]);
    }
  }

  LEBM_INLINE void end_run() {
    if constexpr (kSums) {
      for (int d = 0; d < kD; ++d) {
        firsts[d] = add(firsts[d], first[d]);
        seconds[d] = add(seconds[d], second[d]);
        first[d] = second[d] = broadcast(T(0));
      }
    }
  }

  // Adds the moments of a block, whose p sum to `mass`, to those of the query.
  LEBM_INLINE void add_to(double mass, Vectors& v) const {
    if constexpr (kSums) {
      for (int d = 0; d < kD; ++d) {
        if constexpr (kDifferences) {
          if (v.residual) v.residual[d] += sum(firsts[d]);
          if (v.stretch) v.stretch[d] += sum(seconds[d]);
        } else {
          add_moments(d, sum(firsts[d]), sum(seconds[d]), mass, v.mean ? T(0) : of.block.centre[d],
                      of.query.y[d], of.query.s[d], v);
        }
      }
    }
  }
};

// The sums of a block in the query's regime.
template <typename T, int kD, Level kLevel, typename Moments>
static LEBM_INLINE BlockSums<T> sum_in_regime(const BlockOfQuery<T>& of, Moments& moments) {
  constexpr bool kExcess = kLevel == kAllMoments;
  const bool weighted = of.grid.weighted || (!kSpecialised && kD > 0);
  switch (of.query.regime) {
    case kWarm:
      if constexpr (kD == 0 && kLevel < kAllMoments) {
        if (!weighted) {
          const T sum_ =
              sum_powers<T, kLevel == kMean>(of.grid.block, of.query.rate, of.shift, of.energy);
          return {sum_, sum_, T(0)};
        }
      }
      if constexpr (kSpecialised || kD == 0) {
        if (!weighted) return sum_exponentials<T, kWarm, false, kExcess>(of, moments);
      }
      return sum_exponentials<T, kWarm, true, kExcess>(of, moments);
    case kSmall:
      return sum_exponentials<T, kSmall, true, kExcess>(of, moments);
    case kHot:
      return sum_exponentials<T, kHot, true, false>(of, moments);
    case kSlope:
      if constexpr (kLevel == kSumOnly) {
        return of.grid.weighted ? sum_exponentials<T, kSlope, true, false>(of, moments)
                                : sum_exponentials<T, kSlope, false, false>(of, moments);
      }
      break;
    default:
      break;
  }
  return {T(0), T(0), T(0)};
}

template <typename T, int kD, Level kLevel, bool kDifferences>
static void add_sums(const BlockOfQuery<T>& of, const T* x, Sums<T>& a, Vectors& v,
                     BlockSums<T>& sums) {
  BlockMoments<T, kD, kLevel, kDifferences> moments(of, x);
  sums = sum_in_regime<T, kD, kLevel>(of, moments);
  a.sum += of.query.regime == kSmall ? sums.sum / kTermLift : sums.sum;
  a.mass += sums.mass;
  a.excess += sums.excess;
  a.weight += of.grid.block_weight[of.block.first / of.grid.block];
  moments.add_to(sums.mass, v);
}

// Adds a block to a query's sums. `energy` holds the block's energies and `smallest` the least of
// them; at D > 4 they are overwritten with p.
template <typename T, int kD, Level kLevel>
static void add_block(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T smallest,
                      T* energy, Sums<T>& a, Vectors& v, BlockSums<T>& sums) {
  const int64_t i = block.first / grid.block;
  sums = {0, 0, 0};
  meet_minimum(grid, block, q, smallest, energy, a, v);
  const T m = T(a.shift);
  if (!(m < kAbsent<T>)) return;  // nothing finite yet
  const T offset = offset_of(grid, block, q, m, energy, a, v);
  if (q.regime == kCold) {
    // Only the minima count: a block without one is done.
    if (smallest == m) add_minima<T>(grid, block, q, m, offset, energy, a, v);
    a.weight += grid.block_weight[i];
    return;
  }
  // No latent is in reach, or none has a p that is not 0.
  const T reach = q.regime == kWarm ? (smallest - m) * q.rate + offset : T(0);
  const bool matters = smallest < kAbsent<T> && reach < -Exponent<T>::lowest;
  if (!matters && (q.regime == kWarm || q.regime == kSmall)) {
    prune(q.regime, grid.block_weight[i], a);
    return;
  }
  const BlockOfQuery<T> of{grid, block, q, m, offset, energy};
  if constexpr (kD > 0 && kLevel >= kMean) {
    alignas(64) T reached[kD * kMostLatents];
    const bool huge = !(grid.extent[i] < kHuge<T>);
    const T* g = huge ? without_far(block, kD, grid.block, energy, reached) : block.g;
    if (is_near<T, kD>(grid, i, q.s, smallest, v))
      add_sums<T, kD, kLevel, true>(of, g, a, v, sums);
    else
      add_sums<T, kD, kLevel, false>(of, v.mean ? g : block.v, a, v, sums);
  } else {
    add_sums<T, kD, kLevel, false>(of, nullptr, a, v, sums);
  }
}

LEBM_END_TARGET
