// p of the latents of one block for one query, from its energies, and their sums.
#pragma once

#include "../grid/grid.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// Sums of doubles add up those of sixteen vectors, which rounds less than one long sum.
template <typename T>
LEBM_INLINE int64_t run_length(int64_t size) {
  return sizeof(T) == 8 && size > 16 * kLanes<T> ? 16 * kLanes<T> : size;
}

// p of every latent of a block, from its energies: summed, and handed to `moments` a vector at a
// time, until after a run of them `add_run` adds up what that has summed. kWeighted is only told
// apart where it costs.
template <typename T, Mode kMode, bool kWeighted, bool kExcess, typename Moments, typename AddRun>
static LEBM_INLINE BlockSums<T> sweep(const Block<T>& block, int64_t size, const Query<T>& q, T m,
                                      T offset, const T* energy, Moments&& moments,
                                      AddRun&& add_run) {
  const Vec<T> least_ = broadcast(m), rate = broadcast(-q.rate), offset_ = broadcast(offset);
  const Vec<T> zero = broadcast(T(0));
  struct {
    Vec<T> sum, mass, excess;
  } const none{zero, zero, zero};
  auto all = none;
  const int64_t run = run_length<T>(size);
  for (int64_t begin = 0; begin < size; begin += run) {
    auto part = none;
    const int64_t end = begin + run < size ? begin + run : size;
    for (int64_t j = begin; j < end; j += kLanes<T>) {
      const Vec<T> e = load(energy + j);
      const Vec<T> excess = sub(e, least_);
      Vec<T> p;
      if constexpr (kMode == kNormal) {
        const Vec<T> x = mul(excess, rate);
        p = exp2_of<T>(kWeighted ? add(x, sub(load(block.log2_w + j), offset_)) : x);
        // The floor of exp2 times an absent latent's x must be nothing.
        if (kExcess) part.excess = fma(p, max(x, broadcast(-Exponent<T>::far)), part.excess);
      } else if constexpr (kMode == kSmall) {
        Vec<T> value;
        const Vec<T> weight = load(block.w + j);
        const Vec<T> minus = mul(weight, exp2m1_of<T>(mul(excess, rate), value));
        // A small p has lost digits to the 1; many that are alike lose the same ones.
        p = sizeof(T) == 4 ? add(minus, weight) : mul(weight, value);
        part.sum = add(part.sum, minus);
      } else if constexpr (kMode == kHot) {
        p = load(block.w + j);
        part.sum = fnma(p, excess, part.sum);
      } else {
        // w a^2 Phi(x) with x = -beta a; where |x| >= 1, the same as w (e^x (x - 1) + 1) / beta^2,
        // whose factors don't overflow for a latent far away.
        const Vec<T> one = broadcast(T(1)), a = sub(excess, broadcast(q.gap));
        const Vec<T> bits = max(mul(a, rate), broadcast(-Exponent<T>::far));
        const Vec<T> x = mul(bits, broadcast(T(kLn2))), square = mul(x, x);
        const Vec<T> weight = load(block.w + j), inverse = broadcast(q.inverse);
        const Vec<T> near = mul(mul(mul(a, weight), a), phi_near<T>(x));
        Vec<T> power;
        const Vec<T> minus = exp2m1_of<T>(bits, power);
        const Vec<T> far = mul(mul(fma(power, sub(x, one), one), inverse), inverse);
        p = select_less(square, one, near, mul(weight, far));
        // An absent latent's square may overflow; its weight must win.
        p = select_less(zero, weight, p, zero);
        if constexpr (kWeighted) {
          // Psi, which is 1 where e^x - 1 is x and 1 / beta may overflow. Where weights are equal,
          // c is F, and this would sum to nothing.
          const Vec<T> linear = broadcast(sizeof(T) == 4 ? T(1e-20) : T(1e-36));
          const Vec<T> plus = mul(sub(zero, minus), inverse);
          const Vec<T> first = mul(weight, select_less(square, linear, a, plus));
          part.sum = add(part.sum, select_less(zero, weight, first, zero));
        }
      }
      part.mass = add(part.mass, p);
      moments(j, p);
    }
    all.sum = add(all.sum, part.sum);
    all.mass = add(all.mass, part.mass);
    all.excess = add(all.excess, part.excess);
    add_run();
  }
  const T total = sum(all.mass);
  if (kMode == kSlope) return {total, sum(all.sum), T(0)};
  const bool apart = kMode == kSmall || kMode == kHot;
  return {apart ? sum(all.sum) : total, total, kExcess ? sum(all.excess) : T(0)};
}

// The sum of p = exp(-beta (E - m)) of a block, without log-weights; kStore: energies become p.
template <typename T, bool kStore>
static T sum_powers(int64_t size, T rate, T m, T* energy) {
  using Power = Exp2<T>;
  constexpr int K = 2;
  const Power power;
  const Vec<T> least_ = broadcast(m), by = broadcast(-Power::kSteps * rate);
  const Vec<T> lowest = broadcast(Power::kSteps * Power::kLowest),
               unit = broadcast(T(Power::kUnit));
  Vec<T> total[K];
  for (int k = 0; k < K; ++k) total[k] = broadcast(T(0));
  for (int64_t j = 0; j < size; j += K * kLanes<T>) {
    Vec<T> x[K], p[K], scale[K];
    for (int k = 0; k < K; ++k)
      x[k] = max(mul(sub(load(energy + j + k * kLanes<T>), least_), by), lowest);
    power(x, p, scale);
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

// The largest log2(w) - rate (E - m) of a block: where the weighted sum must be anchored.
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
