// Sums over a block of latents about its centre c, pair by pair, at D <= 4 and without log-weights
// (see plan.h): for queries u = y - s c [D] and latents v = g - c [D][block], the sums over the
// block of
//
//     p = 2^x, p v, p v^2 and p x,   x = linear . v - quadratic . v^2 - rate (r - least r),
//     linear = 2 rate s u,   quadratic = rate s^2
#pragma once

#include "../grid/layout.h"
#include "plan.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// What the pair loops read of a block beside v: `square`, the factor of the rate in x (already
// multiplied by the rate where all queries have the same), and v^2, so that p v and p v^2 take one
// operation each.
template <typename T, int kD>
struct CentredLatents {
  T square[kMostLatents], squares[kD][kMostLatents];
  bool by_pair;  // whether sum p x is taken pair by pair
};

// Adds to query i the sums of a block, each still to be multiplied by `factor`: of p (p - 1 in
// kSmall), and of p v and p v^2. sum p x is `pairs` where it was summed pair by pair, and follows
// from the moments elsewhere.
template <typename T, int kD, Level kLevel, bool kIsSmall>
LEBM_INLINE void add_centred(const Grid<T>& grid, const Block<T>& block, const Plan<T, kD>& plan,
                             int64_t i, double factor, double total, const T (&by_d)[2][kD],
                             bool by_pair, double pairs, const Query<T>* queries, Sums<T>* sums,
                             Vectors* vectors) {
  constexpr bool kExcess = kLevel == kAllMoments && !kIsSmall;
  const double weight = grid.block_weight[block.first / grid.block];
  const double mass = kIsSmall ? factor * (total + weight) : factor * total;
  Sums<T>& a = sums[i];
  a.sum += kIsSmall ? factor * total + weight * plan.factor_minus_1[i] : mass;
  a.mass += mass;
  a.weight += weight;
  if (kExcess) a.excess += plan.start[i] * mass;
  if (kExcess && by_pair) a.excess += pairs;
  for (int d = 0; kLevel >= kMean && d < kD; ++d) {
    const double first = factor * by_d[0][d], second = factor * by_d[1][d];
    if (kExcess && !by_pair) a.excess += plan.linear[d][i] * first - plan.quadratic[d][i] * second;
    add_moments(d, first, second, mass, block.centre[d], queries[i].y[d], queries[i].s[d],
                vectors[i]);
  }
}

// The x at which 2^x counts as 0 beside an energy that is attained, or its lower limit.
template <typename T, int kD>
LEBM_INLINE T lowest_exponent(const Grid<T>& grid, const Plan<T, kD>& plan, int64_t i, int64_t q) {
  const T above = (plan.square_u[q] + grid.r_floor[i]) - plan.upper[q];
  const T lowest = Exp2<T>::kSteps * (Exponent<T>::lowest + plan.rate[q] * above);
  return lowest > Exp2<T>::kNormal ? lowest : Exp2<T>::kNormal;
}

// Sums over a block for kQ queries, at `at` in the plan; the results of the first `count` are kept.
// Exp2 says what bounds the loop: some ten operations a pair beside the moments'. Registers hold
// the constants and sums of two queries, or with all moments of one. More queries at a time gain
// nothing, and spilled registers cost more than they bring.
template <typename T, int kD, Level kLevel, bool kIsSmall, bool kScaled, bool kUniform, bool kFloor,
          int kQ>
static void centred_sums(const Grid<T>& grid, const Block<T>& block, const Plan<T, kD>& plan,
                         const CentredLatents<T, kD>& latents, const int64_t* at, int count,
                         const Query<T>* queries, Sums<T>* sums, Vectors* vectors) {
  using Power = Exp2<T>;
  constexpr int kL = kQ == 1 ? 2 : 1, K = kQ * kL;
  // sum p x follows from the moments, but not where latent energies or absent latents enter x.
  constexpr bool kExcess = kLevel == kAllMoments && !kIsSmall, kByPair = kExcess && kFloor;
  constexpr T kSteps = kIsSmall ? T(1) : Power::kSteps;
  const int64_t size = grid.block;
  const Vec<T> zero = broadcast(T(0));
  const Power power;
  Vec<T> linear[kQ][kD], quadratic[kQ][kD], rate[kQ];
  Vec<T> total[kQ], excess[kQ], first[kQ][kD], second[kQ][kD];
  T lowest = Exponent<T>::infinity;
  for (int q = 0; q < kQ; ++q) {
    if constexpr (kFloor) {
      const T own = lowest_exponent<T, kD>(grid, plan, block.first / size, at[q]);
      lowest = own < lowest ? own : lowest;
    }
    rate[q] = broadcast(-kSteps * plan.rate[at[q]]);
    total[q] = excess[q] = zero;
    for (int d = 0; d < kD; ++d) {
      linear[q][d] = broadcast(kSteps * plan.linear[d][at[q]]);
      quadratic[q][d] = broadcast(kSteps * plan.quadratic[d][at[q]]);
      first[q][d] = second[q][d] = zero;
    }
  }
  // Sums of sixteen vectors round less than one long sum.
  constexpr int64_t kRun = 16 * kLanes<T>;
  for (int64_t begin = 0; begin < size; begin += kRun) {
    Vec<T> partial[kQ];
    for (int q = 0; q < kQ; ++q) partial[q] = zero;
    const int64_t end = begin + kRun < size ? begin + kRun : size;
    for (int64_t j = begin; j < end; j += kL * kLanes<T>) {
      // Vector i of latents against query q is the k-th.
      auto each = [&](auto&& body) LEBM_INLINE_LAMBDA {
        for (int i = 0; i < kL; ++i)
          for (int q = 0; q < kQ; ++q) body(i * kQ + q, q, j + i * kLanes<T>);
      };
      Vec<T> x[K], p[K], scale[K];
      each([&](int k, int q, int64_t n) LEBM_INLINE_LAMBDA {
        if constexpr (kScaled && !kFloor) {
          x[k] = mul(load(block.v + n), fnma(quadratic[q][0], load(block.v + n), linear[q][0]));
        } else {
          const Vec<T> square = load(latents.square + n);
          x[k] = kUniform ? square : mul(rate[q], square);
        }
      });
      for (int d = kScaled && !kFloor ? 1 : 0; d < kD; ++d) {
        each([&](int k, int q, int64_t n) LEBM_INLINE_LAMBDA {
          const Vec<T> v = load(block.v + d * size + n);
          x[k] = fma(v, kScaled ? fnma(quadratic[q][d], v, linear[q][d]) : linear[q][d], x[k]);
        });
      }
      if constexpr (kIsSmall) {
        each([&](int k, int q, int64_t n) LEBM_INLINE_LAMBDA {
          // An absent latent has weight 0. Without the weight it would add exp(-inf) - 1 = -1.
          const Vec<T> weight = load(block.w + n);
          const Vec<T> minus = exp2m1_of<T, kFloor>(x[k], p[k]);
          partial[q] = add(partial[q], kFloor ? mul(weight, minus) : minus);
          if (kFloor) p[k] = mul(weight, p[k]);
        });
      } else {
        if constexpr (kFloor) {
          power.template bounded<kLevel != kSumOnly>(lowest, x, p, scale);
        } else {
          power(x, p, scale);
        }
        each([&](int k, int q, int64_t) LEBM_INLINE_LAMBDA {
          if constexpr (kLevel == kSumOnly) {
            partial[q] = Power::add_to(partial[q], p[k], scale[k]);
          } else {
            p[k] = Power::value(p[k], scale[k]);
            partial[q] = add(partial[q], p[k]);
          }
        });
      }
      if constexpr (kLevel >= kMean) {
        for (int d = 0; d < kD; ++d) {
          each([&](int k, int q, int64_t n) LEBM_INLINE_LAMBDA {
            first[q][d] = fma(p[k], load(block.v + d * size + n), first[q][d]);
            if constexpr (kLevel == kAllMoments)
              second[q][d] = fma(p[k], load(latents.squares[d] + n), second[q][d]);
          });
        }
      }
      if constexpr (kByPair) {
        each([&](int k, int q, int64_t)
                 LEBM_INLINE_LAMBDA { excess[q] = fma(p[k], x[k], excess[q]); });
      }
    }
    for (int q = 0; q < kQ; ++q) total[q] = add(total[q], partial[q]);
  }
  for (int q = 0; q < count; ++q) {
    const double factor = kIsSmall ? plan.factor[at[q]] : plan.factor[at[q]] * Power::kUnit;
    T by_d[2][kD];
    for (int d = 0; kLevel >= kMean && d < kD; ++d) {
      by_d[0][d] = sum(first[q][d]);
      by_d[1][d] = sum(second[q][d]);
    }
    const double pairs = kByPair ? factor / kSteps * sum(excess[q]) : 0.0;
    add_centred<T, kD, kLevel, kIsSmall>(grid, block, plan, at[q], factor, sum(total[q]), by_d,
                                         kByPair && latents.by_pair, pairs, queries, sums, vectors);
  }
}

// Some centred queries of a block, a few at a time. `floored`: x may lie below the range of 2^x.
template <typename T, int kD, Level kLevel, bool kIsSmall>
static void centred_block(const Grid<T>& grid, const Block<T>& block, const Plan<T, kD>& plan,
                          const int64_t* at, int64_t count, bool floored, const Query<T>* queries,
                          Sums<T>* sums, Vectors* vectors) {
  constexpr int kQ = kLevel == kAllMoments ? 1 : 2;
  const int64_t i = block.first / grid.block;
  const bool uniform = kSpecialised && plan.uniform && !plan.scaled;
  const Vec<T> rate = broadcast(-plan.rate[0]);
  // Apart from the rate, whose product with a square of 0 must stay 0.
  const Vec<T> steps = broadcast(kIsSmall ? T(1) : Exp2<T>::kSteps);
  CentredLatents<T, kD> latents;
  // Or latent energies and absent latents enter x.
  const bool floor = floored || !grid.whole[i] || grid.r_floor[i] != grid.r_top[i];
  latents.by_pair = floor || !(plan.scaled || plan.uniform);
  for (int64_t j = 0; j < grid.block; j += kLanes<T>) {
    Vec<T> square = sub(load(block.r + j), broadcast(grid.r_floor[i]));
    for (int d = 0; d < kD; ++d) {
      const Vec<T> v = load(block.v + d * grid.block + j);
      if (!plan.scaled) square = fma(v, v, square);
      if (kLevel == kAllMoments) store(latents.squares[d] + j, mul(v, v));
    }
    store(latents.square + j, uniform ? mul(steps, mul(rate, square)) : square);
  }
  auto call = [&](auto scaled, auto same, auto floored) {
    for (int64_t k = 0; k < count; k += kQ) {
      // The last of an odd number is summed twice, and the second result ignored.
      const int64_t some[2] = {at[k], at[k + 1 < count ? k + 1 : k]};
      centred_sums<T, kD, kLevel, kIsSmall, scaled.value, same.value, floored.value, kQ>(
          grid, block, plan, latents, some, count - k < kQ ? int(count - k) : kQ, queries, sums,
          vectors);
    }
  };
  if constexpr (!kSpecialised) {
    plan.scaled ? call(Yes{}, No{}, Yes{}) : call(No{}, No{}, Yes{});
  } else if (plan.scaled) {
    floor ? call(Yes{}, No{}, Yes{}) : call(Yes{}, No{}, No{});
  } else if (!uniform) {
    call(No{}, No{}, Yes{});
  } else {
    floor ? call(No{}, Yes{}, Yes{}) : call(No{}, Yes{}, No{});
  }
}

LEBM_END_TARGET
