// Loops over the energies E[N] of one row, and over parts of it.
//
// Exponents are x = (E - shift) factor, in bits. They are at most 0: the shift is the least energy
// and the factor negative, or the shift is the largest and the factor positive. Sums run in T
// within kRun energies and in double across them. No energy is read or written beyond N; weights
// are read up to whole_steps(N), since parts of a row begin at multiples of kStep.
#pragma once

#include "../common.h"
#include "../simd/exponential.h"

LEBM_BEGIN_TARGET

// Vectors in lockstep.
constexpr int kTogether = 4;
template <typename T>
constexpr int64_t kStep = kTogether * kLanes<T>;
// Terms of a sum that is then added to others: 16 a lane, wrong by a few roundings at worst.
template <typename T>
constexpr int64_t kRun = 16 * kStep<T>;
// The exponent of the least normal number: a p that would be less is 0. Weights end sooner, by the
// bits of T, so that a weight times a rounding of an energy is normal too.
template <typename T>
constexpr T kLeastShare = sizeof(T) == 4 ? T(-126) : T(-1022);
template <typename T>
constexpr T kLeastWeight = sizeof(T) == 4 ? T(-102) : T(-969);

// body(x, j) for every kTogether vectors x of energies j, j + 1, ..., then for one at a time. The
// last has `pad` beyond the end.
template <typename T, typename F>
LEBM_INLINE void each_step(const T* e, int64_t size, T pad, const F& body) {
  int64_t j = 0;
  for (; j + kStep<T> <= size; j += kStep<T>) {
    Vec<T> x[kTogether];
    for (int k = 0; k < kTogether; ++k) x[k] = load(e + j + k * kLanes<T>);
    body(x, j);
  }
  for (; j < size; j += kLanes<T>) {
    const int64_t left = size - j;
    Vec<T> x[1] = {left < kLanes<T> ? load_part(e + j, left, broadcast(pad)) : load(e + j)};
    body(x, j);
  }
}

// out[j] = body(e[j]) in the same steps; e may be out.
template <typename T, typename F>
LEBM_INLINE void map_steps(const T* e, int64_t size, T pad, T* out, const F& body) {
  each_step(e, size, pad, [&](auto& x, int64_t j) LEBM_INLINE_LAMBDA {
    body(x, j);
    const int64_t left = size - j;
    if (sizeof x == sizeof x[0] && left < kLanes<T>) return store_part(out + j, left, x[0]);
    constexpr int K = sizeof x / sizeof x[0];
    for (int k = 0; k < K; ++k) store(out + j + k * kLanes<T>, x[k]);
  });
}

// The sum of what visit(begin, count, sums) adds to `sums` for the energies from `begin`, by runs.
template <typename T, typename F>
LEBM_INLINE Total<T> sum_runs(int64_t size, const F& visit) {
  Total<T> total{};
  for (int64_t begin = 0; begin < size; begin += kRun<T>) {
    Vec<T> sums[kTogether];
    for (int k = 0; k < kTogether; ++k) sums[k] = broadcast(T(0));
    visit(begin, size - begin < kRun<T> ? size - begin : kRun<T>, sums);
    total += sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  }
  return total;
}

template <typename T>
struct Bounds {
  T least, most;
  bool finite;  // otherwise least and most have no meaning
};

template <typename T>
static Bounds<T> bounds_of(const T* e, int64_t size) {
  Vec<T> least_[kTogether], most[kTogether], zero[kTogether];
  for (int k = 0; k < kTogether; ++k) {
    least_[k] = most[k] = broadcast(e[0]);
    zero[k] = broadcast(T(0));
  }
  each_step(e, size, e[0], [&](auto& x, int64_t) LEBM_INLINE_LAMBDA {
    constexpr int K = sizeof x / sizeof x[0];
    for (int k = 0; k < K; ++k) {
      least_[k] = min(least_[k], x[k]);
      most[k] = max(most[k], x[k]);
      zero[k] = fma(x[k], broadcast(T(0)), zero[k]);  // NaN where x is not finite
    }
  });
  for (int k = 1; k < kTogether; ++k) {
    least_[0] = min(least_[0], least_[k]);
    most[0] = max(most[0], most[k]);
    zero[0] = add(zero[0], zero[k]);
  }
  return {least(least_[0]), -least(sub(broadcast(T(0)), most[0])), sum(zero[0]) == 0};
}

// Exponents from energies.
template <typename T>
struct Bits {
  Vec<T> shift, factor;

  LEBM_INLINE Vec<T> operator()(Vec<T> e) const { return mul(sub(e, shift), factor); }
};

// An energy at which 2^x is 0.
template <typename T>
LEBM_INLINE T absent(T factor) {
  return factor < 0 ? Exponent<T>::infinity : -Exponent<T>::infinity;
}

// The sum of 2^x. Exponents below -74 (-266) are raised to that: beside the largest term, which is
// 1, such terms do not show.
template <typename T>
static Total<T> sum_of_powers(const T* e, int64_t size, T shift, T factor) {
  using Power = Exp2<T>;
  const Power power;
  const Bits<T> bits{broadcast(shift), broadcast(T(Power::kSteps * factor))};
  const T pad = absent(factor);
  Total<T> total =
      sum_runs<T>(size, [&](int64_t begin, int64_t count, auto& sums) LEBM_INLINE_LAMBDA {
        each_step(e + begin, count, pad, [&](auto& x, int64_t) LEBM_INLINE_LAMBDA {
          constexpr int K = sizeof x / sizeof x[0];
          Vec<T> p[K], scale[K];
          for (int k = 0; k < K; ++k) x[k] = bits(x[k]);
          power.template bounded<false>(Power::kLowest, x, p, scale);
          for (int k = 0; k < K; ++k) sums[k] = Power::add_to(sums[k], p[k], scale[k]);
        });
      });
  total *= Power::kUnit;
  return total;
}

// The sum of w y(E), w = 1 where null; y must be 0 at the shift.
template <typename T, typename F>
LEBM_INLINE Total<T> weighted_sum(const T* e, const T* w, int64_t size, T shift, const F& y) {
  return sum_runs<T>(size, [&](int64_t begin, int64_t count, auto& sums) LEBM_INLINE_LAMBDA {
    each_step(e + begin, count, shift, [&](auto& x, int64_t j) LEBM_INLINE_LAMBDA {
      constexpr int K = sizeof x / sizeof x[0];
      for (int k = 0; k < K; ++k) {
        const Vec<T> term = y(x[k]);
        sums[k] = w ? fma(load(w + begin + j + k * kLanes<T>), term, sums[k]) : add(sums[k], term);
      }
    });
  });
}

// The sum of w (2^x - 1).
template <typename T>
static Total<T> sum_of_deficits(const T* e, const T* w, int64_t size, T shift, T factor) {
  const Bits<T> bits{broadcast(shift), broadcast(factor)};
  return weighted_sum(e, w, size, shift,
                      [&](Vec<T> x) LEBM_INLINE_LAMBDA { return exp2m1_of<T>(bits(x)); });
}

// The sum of w (E - shift).
template <typename T>
static Total<T> sum_of_excess(const T* e, const T* w, int64_t size, T shift) {
  const Vec<T> from = broadcast(shift);
  return weighted_sum(e, w, size, shift, [&](Vec<T> x) LEBM_INLINE_LAMBDA { return sub(x, from); });
}

// out = 2^x, 0 where x is at most `lowest`, and its sum; out may be e.
template <typename T>
static Total<T> write_powers(const T* e, int64_t size, T shift, T factor, T lowest, T* out) {
  const Bits<T> bits{broadcast(shift), broadcast(factor)};
  const Vec<T> low = broadcast(lowest);
  const T pad = absent(factor);
  return sum_runs<T>(size, [&](int64_t begin, int64_t count, auto& sums) LEBM_INLINE_LAMBDA {
    map_steps(e + begin, count, pad, out + begin, [&](auto& x, int64_t) LEBM_INLINE_LAMBDA {
      constexpr int K = sizeof x / sizeof x[0];
      for (int k = 0; k < K; ++k) {
        const Vec<T> bounded = max(bits(x[k]), low);
        x[k] = keep_above(exp2_of<T, false>(bounded), bounded, low);
        sums[k] = add(sums[k], x[k]);
      }
    });
  });
}

// Multiplies p by `by`; the result is 0 where p is at most `low`.
template <typename T>
static void scale_powers(T* p, int64_t size, T low, T by) {
  const Vec<T> least_ = broadcast(low), by_ = broadcast(by);
  map_steps(p, size, T(0), p, [&](auto& x, int64_t) LEBM_INLINE_LAMBDA {
    constexpr int K = sizeof x / sizeof x[0];
    for (int k = 0; k < K; ++k) x[k] = mul(keep_above(x[k], x[k], least_), by_);
  });
}

// The sum of p g; a p that does not show in it counts as 0.
template <typename T>
static Total<T> sum_of_products(const T* p, const T* g, int64_t size) {
  const Vec<T> low = broadcast(T(__builtin_exp2(double(Exponent<T>::lowest))));
  return sum_runs<T>(size, [&](int64_t begin, int64_t count, auto& sums) LEBM_INLINE_LAMBDA {
    const T* other = g + begin;
    each_step(p + begin, count, T(0), [&](auto& x, int64_t j) LEBM_INLINE_LAMBDA {
      constexpr int K = sizeof x / sizeof x[0];
      const int64_t left = count - j;
      for (int k = 0; k < K; ++k) x[k] = keep_above(x[k], x[k], low);
      if (K == 1 && left < kLanes<T>) {
        sums[0] = fma(x[0], load_part(other + j, left, broadcast(T(0))), sums[0]);
        return;
      }
      for (int k = 0; k < K; ++k) sums[k] = fma(x[k], load(other + j + k * kLanes<T>), sums[k]);
    });
  });
}

// out = p (g - mean) by, 0 where that would be a subnormal number. A small p is lifted by a power
// of two meanwhile, so that no product on the way is subnormal either.
template <typename T>
static void write_slopes(const T* p, const T* g, int64_t size, T mean, T by, T* out) {
  constexpr T kLift = sizeof(T) == 4 ? T(0x1p62) : T(0x1p510);
  const Vec<T> mean_ = broadcast(mean), by_ = broadcast(by), zero = broadcast(T(0));
  const Vec<T> small = broadcast(T(1) / kLift), lift = broadcast(kLift);
  const Vec<T> least_ = broadcast(T(__builtin_exp2(double(kLeastShare<T>)) * kLift));
  map_steps(p, size, T(0), out, [&](auto& x, int64_t j) LEBM_INLINE_LAMBDA {
    constexpr int K = sizeof x / sizeof x[0];
    const int64_t left = size - j;
    for (int k = 0; k < K; ++k) {
      const Vec<T> slope =
          K == 1 && left < kLanes<T> ? load_part(g + j, left, mean_) : load(g + j + k * kLanes<T>);
      const Vec<T> from = sub(slope, mean_), large = keep_above(x[k], x[k], small);
      const Vec<T> lifted = mul(mul(mul(sub(x[k], large), lift), from), by_);
      const Vec<T> kept = keep_above(lifted, max(lifted, sub(zero, lifted)), least_);
      x[k] = add(mul(mul(large, from), by_), mul(kept, small));
    }
  });
}

LEBM_END_TARGET
