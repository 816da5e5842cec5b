// The posterior weights of one block's latents for one query, not yet normalised, and their sums:
//
//     p[j] = w[j] exp(-beta (E[j] - m))    for j in [0, block), from E[block]
#pragma once

#include "../grid/grid.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// Sums of doubles are taken over runs of sixteen vectors, whose sums are then added: this rounds
// less than one long sum.
template <typename T>
LEBM_INLINE int64_t run_length(int64_t size) {
  return sizeof(T) == 8 && size > 16 * kLanes<T> ? 16 * kLanes<T> : size;
}

// A block and a query, as the loops over the block's latents read them.
template <typename T>
struct BlockOfQuery {
  const Grid<T>& grid;
  const Block<T>& block;
  const Query<T>& query;
  T shift, offset;  // m, and the offset of weighted sums
  T* energy;        // [block]; at D > 4 it is overwritten with p
};

template <typename T>
struct VectorSums {
  Vec<T> sum, mass, excess;
};

// Sums in kSmall and kHot are taken times this, so that the terms of small weights are normal
// numbers. There a latent of small weight still counts: the terms of all others may be 0.
constexpr double kTermLift = 0x1p24;

// The unnormalised posterior weights p of a vector of latents at j, in one regime; `sums` are of
// vectors. kWeighted is a flag only where it costs time.
template <typename T, Regime kRegime, bool kWeighted, bool kExcess>
LEBM_INLINE Vec<T> weigh(const BlockOfQuery<T>& of, int64_t j, VectorSums<T>& sums) {
  const Block<T>& block = of.block;
  const Vec<T> rate = broadcast(-of.query.rate), zero = broadcast(T(0));
  const Vec<T> excess = sub(load(of.energy + j), broadcast(of.shift));
  if constexpr (kRegime == kWarm) {
    const Vec<T> x = mul(excess, rate);
    const Vec<T> p =
        exp2_of<T>(kWeighted ? add(x, sub(load(block.log2_w + j), broadcast(of.offset))) : x);
    // x may be infinite where p is 0.
    if (kExcess) sums.excess = fma(p, max(x, broadcast(-Exponent<T>::far)), sums.excess);
    return p;
  } else if constexpr (kRegime == kSmall) {
    Vec<T> value;
    const Vec<T> weight = load(block.w + j);
    const Vec<T> x = max(mul(excess, rate), broadcast(-Exponent<T>::far));
    const Vec<T> minus = mul(mul(weight, broadcast(T(kTermLift))), exp2m1_of<T>(x, value));
    sums.sum = add(sums.sum, minus);
    // Not minus + weight: a small p would lose digits to the 1.
    const Vec<T> p = mul(weight, weighted_power<T>(value, x, load(block.log2_w + j)));
    if (kExcess) sums.excess = fma(p, x, sums.excess);
    return p;
  } else if constexpr (kRegime == kHot) {
    const Vec<T> weight = load(block.w + j);
    // An absent latent has an infinite energy and the weight 0.
    const Vec<T> relative = min(mul(excess, broadcast(of.query.unit)), broadcast(T(kMost<T>)));
    sums.sum = fnma(weight, relative, sums.sum);
    return weighted_power<T>(weight, zero, load(block.log2_w + j));
  } else {
    // w (Z a)^2 Phi(x) with x = -beta a. For |x| >= 1 it is w (e^x (x - 1) + 1) (Z / beta)^2, whose
    // factors don't overflow for a latent far away.
    const Vec<T> one = broadcast(T(1)), above = sub(excess, broadcast(of.query.gap));
    const Vec<T> bits = max(mul(above, rate), broadcast(-Exponent<T>::far));
    const Vec<T> x = mul(bits, broadcast(T(kLn2))), square = mul(x, x);
    const Vec<T> weight = load(block.w + j), ratio = broadcast(of.query.ratio);
    const Vec<T> a = mul(above, broadcast(of.query.unit));
    const Vec<T> near = mul(mul(mul(a, weight), a), phi_near<T>(x));
    Vec<T> power;
    const Vec<T> minus = exp2m1_of<T>(bits, power);
    const Vec<T> small = mul(weight, ratio);  // Z / beta is large where the weight is small
    const Vec<T> far = mul(mul(fma(power, sub(x, one), one), small), ratio);
    const Vec<T> curve = select_less(square, one, near, far);
    if constexpr (kWeighted) {
      // w Z a Psi(x). Psi is 1 where e^x - 1 is x and Z / beta may overflow. Where weights are
      // equal, c is F, and this would sum to nothing.
      const Vec<T> linear = broadcast(sizeof(T) == 4 ? T(1e-20) : T(1e-36));
      const Vec<T> plus = mul(sub(zero, minus), small);
      const Vec<T> slope = select_less(square, linear, mul(weight, a), plus);
      sums.sum = add(sums.sum, select_less(zero, weight, slope, zero));
    }
    // The square of an absent latent may overflow; its weight of 0 must win.
    return select_less(zero, weight, curve, zero);
  }
}

// Sums over the block's latents. moments.add_p gets p one vector at a time.
template <typename T, Regime kRegime, bool kWeighted, bool kExcess, typename Moments>
static LEBM_INLINE BlockSums<T> sum_exponentials(const BlockOfQuery<T>& of, Moments& moments) {
  const int64_t size = of.grid.block, run = run_length<T>(size);
  const Vec<T> zero = broadcast(T(0));
  const VectorSums<T> none{zero, zero, zero};
  VectorSums<T> all = none;
  for (int64_t begin = 0; begin < size; begin += run) {
    VectorSums<T> partial = none;
    const int64_t end = begin + run < size ? begin + run : size;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      const Vec<T> p = weigh<T, kRegime, kWeighted, kExcess>(of, j, partial);
      partial.mass = add(partial.mass, p);
      moments.add_p(j, p);
    }
    all.sum = add(all.sum, partial.sum);
    all.mass = add(all.mass, partial.mass);
    all.excess = add(all.excess, partial.excess);
    moments.end_run();
  }
  const T total = sum(all.mass);
  if (kRegime == kSlope) return {total, sum(all.sum), T(0)};
  const bool apart = kRegime == kSmall || kRegime == kHot;
  return {apart ? sum(all.sum) : total, total, kExcess ? sum(all.excess) : T(0)};
}

// The sum of p = exp(-beta (E - m)) over a block, without log-weights; kStore: energies become p.
template <typename T, bool kStore>
static T sum_powers(int64_t size, T rate, T m, T* energy) {
  using Power = Exp2<T>;
  constexpr int K = 2;
  const Power power;
  const Vec<T> shift_ = broadcast(m), by = broadcast(-Power::kSteps * rate);
  const Vec<T> unit = broadcast(T(Power::kUnit));
  Vec<T> total[K];
  for (int k = 0; k < K; ++k) total[k] = broadcast(T(0));
  for (int64_t j = 0; j < size; j += K * kLanes<T>) {
    Vec<T> x[K], p[K], scale[K];
    for (int k = 0; k < K; ++k) x[k] = mul(sub(load(energy + j + k * kLanes<T>), shift_), by);
    power.template bounded<kStore>(Power::kLowest, x, p, scale);
    for (int k = 0; k < K; ++k) {
      if constexpr (kStore) {
        p[k] = Power::value(p[k], scale[k]);
        if constexpr (Power::kUnit != 1) p[k] = mul(p[k], unit);
        store(energy + j + k * kLanes<T>, p[k]);
        total[k] = add(total[k], p[k]);
      } else {
        total[k] = Power::add_to(total[k], p[k], scale[k]);
      }
    }
  }
  const T sum_ = sum(add(total[0], total[1]));
  return kStore ? sum_ : T(sum_ * Power::kUnit);
}

// The largest log2(w) - rate (E - m) of a block: the offset that a weighted sum needs.
template <typename T, bool kIsCold>
static T largest_exponent(const Block<T>& block, int64_t size, T rate, T m, const T* energy) {
  const Vec<T> nothing = broadcast(-Exponent<T>::infinity);
  Vec<T> smallest = broadcast(Exponent<T>::infinity);
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    const Vec<T> e = load(energy + j), log2_w = load(block.log2_w + j);
    const Vec<T> x = kIsCold ? select_equal(e, broadcast(m), log2_w, nothing)
                             : fma(sub(e, broadcast(m)), broadcast(-rate), log2_w);
    smallest = min(smallest, sub(broadcast(T(0)), x));
  }
  return -least(smallest);
}

LEBM_END_TARGET
