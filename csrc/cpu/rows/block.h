// Adds one block of latents to the sums of one query, from its energies.
#pragma once

#include "../grid/grid.h"
#include "../grid/layout.h"
#include "exponentials.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// The first, as the latents were given, of those before `bound` whose energy is `smallest`.
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

// Moments about the block's centre cost least. They are wrong by a rounding of the block's size,
// which would show where the query lies nearer to a latent than that: there, differences y - s g
// are summed instead. The posterior mean is of the latents' size, and summed as it stands.
template <typename T, int kD>
LEBM_INLINE bool is_near(const Grid<T>& grid, int64_t i, const T* s, T smallest, const Vectors& v) {
  T size = 0;
  for (int d = 0; d < kD; ++d) {
    const T half = s[d] * grid.half[i * kD + d];
    size += half * half;
  }
  return !v.mean && smallest - grid.r_top[i] < size;
}

// At beta = inf: the minima of a block, with their weights. There are few, so no vectors; but if
// they are many, sums of sixteen are added up, which rounds less than one long sum.
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

// Where the squared size of a block is more than this, a latent out of a query's reach may be so
// large that its p, which is not 0 but 2^lowest, shows in the moments.
template <typename T>
constexpr T kWide = sizeof(T) == 4 ? T(1e30) : T(1e300);

// The block's g without the latents out of reach, in `memory`.
template <typename T>
static const T* without_far(const Block<T>& block, int64_t D, int64_t size, const T* energy,
                            T* memory) {
  for (int64_t d = 0; d < D; ++d)
    for (int64_t j = 0; j < size; ++j)
      memory[d * size + j] = energy[j] < kAbsent<T> ? block.g[d * size + j] : T(0);
  return memory;
}

// Adds a block to a query's sums. `energy` holds its energies, of which `smallest` is the least;
// at general D it is overwritten with p.
template <typename T, int kD, Level kLevel>
static void add_block(const Grid<T>& grid, const Block<T>& block, const Query<T>& q, T smallest,
                      T* energy, Sums<T>& a, Vectors& v, BlockSums<T>& sums) {
  const int64_t D = kD ? kD : grid.D, size = grid.block;
  sums = {0, 0, 0};
  // kSlope needs the m that F - m was found with.
  if (smallest < T(a.least) && q.mode != kSlope) {
    lower_least(q, grid.weighted, a, v, D, smallest);
    a.index = first_minimum(grid, block, energy, smallest, grid.N);
  } else if (grid.order && smallest == T(a.least)) {
    a.index = first_minimum(grid, block, energy, smallest, a.index);
  }
  const T m = T(a.least);
  if (!(m < kAbsent<T>)) return;  // nothing finite yet
  const bool anchored = grid.weighted && (q.mode == kNormal || q.mode == kCold);
  if (anchored && a.offset < 0) {
    const T largest = q.mode == kCold ? largest_exponent<T, true>(block, size, q.rate, m, energy)
                                      : largest_exponent<T, false>(block, size, q.rate, m, energy);
    // No exponent exceeds 0, and a sum that reaches 2^-60 needs no anchor.
    raise_offset(a, v, D, largest > -60 ? 0.0 : largest);
  }
  const T offset = anchored ? T(a.offset) : T(0);

  if (q.mode == kCold) {
    // Only the minima count: a block without one is done.
    if (smallest == m) add_minima<T>(grid, block, q, m, offset, energy, a, v);
    a.seen += grid.block_weight[block.first / size];
    return;
  }

  // A block without a latent in reach, or one with a p above 2^lowest, which would stand for all of
  // them and show in the moments where they are far away.
  const T reach = q.mode == kNormal ? (smallest - m) * q.rate + offset : T(0);
  const bool matters = smallest < kAbsent<T> && reach < -Exponent<T>::lowest;
  if (!matters && (q.mode == kNormal || q.mode == kSmall)) {
    leave_out(q.mode, grid.block_weight[block.first / size], a);
    return;
  }

  const bool near =
      kD > 0 && kLevel >= kMean && is_near<T, kD>(grid, block.first / size, q.s, smallest, v);
  constexpr int kDims = kD ? kD : 1;
  constexpr bool kGathers = kD > 0 && kLevel >= kMean;
  alignas(64) T reached[kGathers ? kDims * kMostLatents : 1];
  const bool wide = kGathers && !(grid.extent[block.first / size] < kWide<T>);
  const T* all = wide ? without_far(block, kDims, size, energy, reached) : block.g;
  const T* latents = v.mean ? all : block.v;
  const Vec<T> zero = broadcast(T(0));
  Vec<T> first[kDims], second[kDims], firsts[kDims], seconds[kDims];
  for (int d = 0; d < kD; ++d) first[d] = second[d] = firsts[d] = seconds[d] = zero;
  auto moments = [&](int64_t j, Vec<T> p, auto differences) LEBM_INLINE_LAMBDA {
    if constexpr (kD > 0 && kLevel >= kMean) {
      for (int d = 0; d < kD; ++d) {
        if constexpr (differences.value) {
          const Vec<T> g = load(all + d * size + j);
          const Vec<T> pull = mul(p, fnma(broadcast(q.s[d]), g, broadcast(q.y[d])));
          first[d] = add(first[d], pull);
          if constexpr (kLevel == kAllMoments) second[d] = fma(pull, g, second[d]);
        } else {
          const Vec<T> g = load(latents + d * size + j);
          if constexpr (kLevel == kAllMoments) {
            const Vec<T> pg = mul(p, g);
            first[d] = add(first[d], pg);
            second[d] = fma(pg, g, second[d]);
          } else {
            first[d] = fma(p, g, first[d]);
          }
        }
      }
    } else if constexpr (kD == 0 && kLevel >= kMean) {
      store(energy + j, p);
    }
  };
  auto about_centre = [&](int64_t j, Vec<T> p) LEBM_INLINE_LAMBDA { moments(j, p, No{}); };
  auto of_differences = [&](int64_t j, Vec<T> p) LEBM_INLINE_LAMBDA { moments(j, p, Yes{}); };
  auto add_run = [&]() LEBM_INLINE_LAMBDA {
    for (int d = 0; kLevel >= kMean && d < kD; ++d) {
      firsts[d] = add(firsts[d], first[d]);
      seconds[d] = add(seconds[d], second[d]);
      first[d] = second[d] = zero;
    }
  };
  constexpr bool kExcess = kLevel == kAllMoments;
  auto sweep_with = [&](auto&& gather) LEBM_INLINE_LAMBDA {
    switch (q.mode) {
      case kNormal:
        if constexpr (kD == 0 && kLevel < kAllMoments) {
          if (!grid.weighted) {
            sums.sum = sums.mass = sum_powers<T, kLevel == kMean>(size, q.rate, m, energy);
            break;
          }
        }
        sums = grid.weighted ? sweep<T, kNormal, true, kExcess>(block, size, q, m, offset, energy,
                                                                gather, add_run)
                             : sweep<T, kNormal, false, kExcess>(block, size, q, m, offset, energy,
                                                                 gather, add_run);
        break;
      case kSmall:
        sums = sweep<T, kSmall, true, false>(block, size, q, m, offset, energy, gather, add_run);
        break;
      case kHot:
        sums = sweep<T, kHot, true, false>(block, size, q, m, offset, energy, gather, add_run);
        break;
      case kSlope:
        if constexpr (kLevel == kSumOnly) {
          sums = grid.weighted ? sweep<T, kSlope, true, false>(block, size, q, m, offset, energy,
                                                               gather, add_run)
                               : sweep<T, kSlope, false, false>(block, size, q, m, offset, energy,
                                                                gather, add_run);
        }
        break;
      default:
        break;
    }
  };
  if constexpr (kD > 0 && kLevel >= kMean) {
    near ? sweep_with(of_differences) : sweep_with(about_centre);
  } else {
    sweep_with(about_centre);
  }
  a.sum += sums.sum;
  a.mass += sums.mass;
  a.excess += sums.excess;
  a.seen += grid.block_weight[block.first / size];
  if constexpr (kD > 0 && kLevel >= kMean) {
    for (int d = 0; d < kD; ++d) {
      if (near) {
        if (v.residual) v.residual[d] += sum(firsts[d]);
        if (v.stretch) v.stretch[d] += sum(seconds[d]);
      } else {
        add_moments(d, sum(firsts[d]), sum(seconds[d]), sums.mass, v.mean ? T(0) : block.centre[d],
                    q.y[d], q.s[d], v);
      }
    }
  }
}

LEBM_END_TARGET
