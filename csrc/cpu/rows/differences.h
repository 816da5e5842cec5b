// A block of latents about a shift m, at D <= 4 and without log-weights: one pass over the pairs,
// from differences d = y - s g.
//
//     x = -rate (|d|^2 + r - m),   sum_j 2^x, sum_j 2^x d, sum_j 2^x d g, sum_j 2^x x
//
// Energies equal those of energy_of bit for bit. add_block takes two passes, since it has to know
// the least energy first; here m only has to be near it.
#pragma once

#include "../grid/reach.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// The sums of a block, still in T.
template <typename T, int kD>
struct DifferenceSums {
  T least;  // of E
  T mass, excess, residual[kD], stretch[kD];
};

// kScaled: s may differ from 1. kFloor: x may lie below the range of 2^x.
template <typename T, int kD, Level kLevel, bool kScaled, bool kFloor>
__attribute__((noinline)) static DifferenceSums<T, kD> sum_differences(const Block<T>& block,
                                                                       int64_t size,
                                                                       const Query<T>& query,
                                                                       T shift_) {
  using Power = Exp2<T>;
  constexpr bool kExcess = kLevel == kAllMoments;
  const Power power;
  const Vec<T> zero = broadcast(T(0)), far = broadcast(-Power::kSteps * Exponent<T>::far);
  const Vec<T> rate = broadcast(-Power::kSteps * query.rate), shift = broadcast(shift_);
  const Vec<T> most = broadcast(T(Power::kSteps * kMostOfExponent));
  Vec<T> y[kD], s[kD], residual[kD], stretch[kD];
  for (int d = 0; d < kD; ++d) {
    y[d] = broadcast(query.y[d]);
    s[d] = broadcast(query.s[d]);
    residual[d] = stretch[d] = zero;
  }
  Vec<T> least_ = broadcast(Exponent<T>::infinity), mass = zero, excess = zero;
  auto difference = [&](int d, int64_t j) LEBM_INLINE_LAMBDA {
    const Vec<T> g = load(block.g + d * size + j);
    return kScaled ? fnma(s[d], g, y[d]) : sub(y[d], g);
  };
  auto exponents = [&](int64_t j) LEBM_INLINE_LAMBDA {
    Vec<T> e = load(block.r + j);
    for (int d = 0; d < kD; ++d) {
      const Vec<T> of_d = difference(d, j);
      e = fma(of_d, of_d, e);
    }
    least_ = min(least_, e);
    const Vec<T> x = mul(sub(e, shift), rate);
    return kScales ? x : min(x, most);
  };
  // Sums of sixteen vectors round less than one long sum.
  constexpr int64_t kRun = 16 * kLanes<T>;
  // Exponents are found one vector ahead of their powers: otherwise the chain from a difference to
  // a sum is longer than what a processor looks ahead.
  Vec<T> next = exponents(0);
  for (int64_t begin = 0; begin < size; begin += kRun) {
    const int64_t end = begin + kRun < size ? begin + kRun : size;
    Vec<T> partial = zero;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      const Vec<T> exact = next;
      const int64_t after = j + kLanes<T>;
      next = exponents(after < size ? after : 0);
      Vec<T> x[1] = {exact}, p[1], scale[1];
      if constexpr (kFloor) {
        power.template bounded<kLevel != kSumOnly>(Power::kLowest, x, p, scale);
      } else {
        power(x, p, scale);
      }
      if constexpr (kLevel == kSumOnly) {
        partial = Power::add_to(partial, p[0], scale[0]);
        continue;
      }
      p[0] = Power::value(p[0], scale[0]);
      partial = add(partial, p[0]);
      for (int d = 0; d < kD; ++d) {
        const Vec<T> of_d = difference(d, j);
        if constexpr (kExcess) {
          const Vec<T> pull = mul(p[0], of_d);
          residual[d] = add(residual[d], pull);
          stretch[d] = fma(pull, load(block.g + d * size + j), stretch[d]);
        } else {
          residual[d] = fma(p[0], of_d, residual[d]);
        }
      }
      // x may be infinite where p is 0.
      if constexpr (kExcess) excess = fma(p[0], kFloor ? max(exact, far) : exact, excess);
    }
    mass = add(mass, partial);
  }
  DifferenceSums<T, kD> sums{};
  sums.least = least(least_);
  sums.mass = T(sum(mass) * Power::kUnit);
  for (int d = 0; d < kD && kLevel >= kMean; ++d) {
    sums.residual[d] = T(sum(residual[d]) * Power::kUnit);
    if constexpr (kExcess) sums.stretch[d] = T(sum(stretch[d]) * Power::kUnit);
  }
  if constexpr (kExcess) sums.excess = T(sum(excess) * (Power::kUnit / Power::kSteps));
  return sums;
}

// Adds a block to a warm query's sums. If the shift turns out to be so high that exponents round
// too much, it moves to the block's least energy, and the block is summed again. `unbounded`: no x
// lies below the range of 2^x. The least energy is kept in `upper`.
template <typename T, int kD, Level kLevel>
static void add_differences(const Grid<T>& grid, const Block<T>& block, bool scaled, bool unbounded,
                            const Query<T>& query, Sums<T>& a, Vectors& v, T& upper) {
  const int64_t size = grid.block;
  auto sums_of = [&](auto has_scale, auto has_floor) {
    return sum_differences<T, kD, kLevel, has_scale.value, has_floor.value>(block, size, query,
                                                                            T(a.shift));
  };
  auto sums_about_shift = [&] {
    if (!kSpecialised || (scaled && !unbounded)) return sums_of(Yes{}, Yes{});
    if (scaled) return sums_of(Yes{}, No{});
    return unbounded ? sums_of(No{}, No{}) : sums_of(No{}, Yes{});
  };
  DifferenceSums<T, kD> found = sums_about_shift();
  upper = found.least < upper ? found.least : upper;
  if (query.rate * (T(a.shift) - found.least) > kRise<T>) {
    lower_shift(query, false, a, v, kD, found.least);
    unbounded = false;
    found = sums_about_shift();
  }
  a.sum += found.mass;
  a.mass += found.mass;
  a.excess += found.excess;
  a.weight += grid.block_weight[block.first / size];
  for (int d = 0; d < kD && kLevel >= kMean; ++d) {
    if (v.residual) v.residual[d] += found.residual[d];
    if (v.stretch) v.stretch[d] += found.stretch[d];
  }
}

LEBM_END_TARGET
