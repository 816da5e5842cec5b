// The soft minimum of one row of energies E[N], and its distribution:
//
//     F = -1/beta log sum_n w exp(-beta E) = m + gap,   p = w exp(-beta E) / sum_n (same)
//
// with weights w that sum to 1 and m = min E. For the soft maximum, E stands for the negated
// energies. Most rows are read where they lie. Rows with infinite energies, with dropped latents,
// or with a beta or a spread near the end of T's range are first rewritten, in scratch memory, as
// excesses (E - m) unit.
#pragma once

#include "../regime.h"
#include "weights.h"

LEBM_BEGIN_TARGET

template <typename T>
struct Row {
  const T* energy;
  int64_t size;
  double beta;
  bool largest;
  Weights<T> weights;
  T* scratch;  // [2 N]
  const Parallel* parallel;

  double sign() const { return largest ? -1 : 1; }
};

// A row as the loops take it.
template <typename T>
struct Settled {
  Regime regime;  // kSkip: invalid
  const T* e;     // the energies, or excesses in `unit`
  T shift;        // the e where E = m
  T factor;       // (e - shift) factor is the exponent in bits
  double unit;
  double m;
  bool far;    // a latent is infinitely far above m; its e is inf
  bool mixed;  // m is -inf, and a latent has E = inf
};

// Long rows are summed in pieces, on all threads.
constexpr int64_t kPiece = 1 << 14;
constexpr int64_t kMostPieces = 64;

// of(begin, size) for each piece of the row, joined in order by `join(sum, next)`.
template <typename T, typename F, typename J>
static auto over_pieces(const Row<T>& row, const F& of, const J& join) -> decltype(of(0, 0)) {
  const int64_t N = row.size;
  if (N < 2 * kPiece) return of(0, N);
  const int64_t count = N / kPiece < kMostPieces ? N / kPiece : kMostPieces;
  decltype(of(0, 0)) found[kMostPieces];
  auto start = [&](int64_t i) { return i == count ? N : N / count * i / kStep<T> * kStep<T>; };
  for_each(*row.parallel, count,
           [&](int64_t i) { found[i] = of(start(i), start(i + 1) - start(i)); });
  for (int64_t i = 1; i < count; ++i) join(found[0], found[i]);
  return found[0];
}

template <typename T, typename F>
static double total_over_pieces(const Row<T>& row, const F& of) {
  return over_pieces(row, of, [](Total<T>& a, const Total<T>& b) { a += b; });
}

template <typename T, typename F>
static void each_piece(const Row<T>& row, const F& body) {
  auto of = [&](int64_t begin, int64_t size) {
    body(begin, size);
    return true;
  };
  over_pieces(row, of, [](bool&, bool) {});
}

template <typename T>
static Regime regime_of(double beta, T spread) {
  if (!is_finite(beta)) return kCold;
  const double largest = beta * double(spread);
  if (beta == 0 || largest <= double(Exponent<T>::epsilon) / 16) return kHot;
  return largest <= -kSmallL ? kSmall : kWarm;
}

// A power of two. In this unit the sum of hot excesses does not overflow, and the rate is in range.
template <typename T>
static double unit_of(Regime regime, double beta, T spread) {
  constexpr double large = sizeof(T) == 4 ? 0x1p64 : 0x1p512, small = 1 / large;
  const double rate = beta * kLog2E;
  if (regime == kCold) return 1;
  if (regime == kHot) return double(spread) > large ? small : 1;
  if (rate > large) return large;
  return rate < small ? small : 1;
}

// The excesses (E - m) unit; 0 for dropped latents, inf for those infinitely far above m.
template <typename T>
static void write_excess(const Row<T>& row, T m, T unit, T* excess) {
  const T sign = T(row.sign());
  const T* log2_w = row.weights.log2_w;
  for (int64_t n = 0; n < row.size; ++n) {
    const T E = sign * row.energy[n];
    const bool at_zero = E == m || (log2_w && log2_w[n] == -Exponent<T>::infinity);
    excess[n] = at_zero ? T(0) : (E - m) * unit;
  }
}

// The bounds of E over the latents that are not dropped; not finite if one of them is NaN.
template <typename T>
static Bounds<T> bounds_of_kept(const Row<T>& row) {
  const T sign = T(row.sign());
  const T* log2_w = row.weights.log2_w;
  Bounds<T> bounds{Exponent<T>::infinity, -Exponent<T>::infinity, true};
  for (int64_t n = 0; n < row.size; ++n) {
    if (log2_w && log2_w[n] == -Exponent<T>::infinity) continue;
    const T E = sign * row.energy[n];
    bounds.finite = bounds.finite && E == E;
    if (E < bounds.least) bounds.least = E;
    if (E > bounds.most) bounds.most = E;
  }
  return bounds;
}

template <typename T>
static Bounds<T> bounds_of_row(const Row<T>& row) {
  return over_pieces(
      row, [&](int64_t begin, int64_t size) { return bounds_of(row.energy + begin, size); },
      [](Bounds<T>& a, const Bounds<T>& b) {
        a.least = b.least < a.least ? b.least : a.least;
        a.most = b.most > a.most ? b.most : a.most;
        a.finite = a.finite && b.finite;
      });
}

template <typename T>
static Settled<T> settle(const Row<T>& row) {
  Settled<T> s{};
  s.regime = kSkip;
  if (!(row.beta >= 0) || !row.weights.valid) return s;
  const T sign = T(row.sign());
  Bounds<T> bounds{};
  if (row.weights.complete) bounds = bounds_of_row(row);
  const bool plain = bounds.finite;
  if (plain) {
    if (row.largest) bounds = {-bounds.most, -bounds.least, true};
  } else {
    bounds = bounds_of_kept(row);
    if (!bounds.finite) return s;
  }
  const T spread = bounds.most == bounds.least ? T(0) : bounds.most - bounds.least;
  s.m = bounds.least;
  s.far = spread == Exponent<T>::infinity;
  s.mixed = s.far && !is_finite(bounds.least) && !is_finite(bounds.most);
  s.regime = regime_of(row.beta, spread);
  s.unit = unit_of(s.regime, row.beta, spread);
  if (plain && !s.far && s.unit == 1) {
    s.e = row.energy;
    s.shift = sign * bounds.least;
    s.factor = T(-row.sign() * row.beta * kLog2E);
  } else {
    write_excess(row, bounds.least, T(s.unit), row.scratch);
    s.e = row.scratch;
    s.shift = T(0);
    s.factor = T(-row.beta / s.unit * kLog2E);
  }
  return s;
}

// Writes the exponents log2 w + (e - shift) factor, or their limits; returns the largest.
template <typename T>
static T write_exponents(const Row<T>& row, const Settled<T>& s, T* out) {
  const Vec<T> nothing = broadcast(-Exponent<T>::infinity), far = broadcast(Exponent<T>::infinity),
               zero = broadcast(T(0));
  const Vec<T> shift = broadcast(s.shift), factor = broadcast(s.factor);
  return over_pieces(
      row,
      [&](int64_t begin, int64_t size) {
        const T* log2_w = row.weights.log2_w ? row.weights.log2_w + begin : nullptr;
        Vec<T> least_ = far;
        map_steps(s.e + begin, size, absent(s.factor), out + begin,
                  [&](auto& x, int64_t j) LEBM_INLINE_LAMBDA {
                    constexpr int K = sizeof x / sizeof x[0];
                    for (int k = 0; k < K; ++k) {
                      const Vec<T> l = log2_w ? load(log2_w + j + k * kLanes<T>) : zero;
                      if (s.regime == kCold)
                        x[k] = select_equal(x[k], shift, l, nothing);
                      else if (s.regime == kHot)
                        x[k] = select_equal(x[k], far, nothing, l);
                      else
                        x[k] = fma(sub(x[k], shift), factor, l);
                      least_ = min(least_, sub(zero, x[k]));
                    }
                  });
        return -least(least_);
      },
      [](T& a, T b) { a = b > a ? b : a; });
}

template <typename T>
static double deficit_of(const Row<T>& row, const Settled<T>& s) {
  const T* w = row.weights.w;
  return total_over_pieces(row,
                           [&](int64_t begin, int64_t size) {
                             return sum_of_deficits(s.e + begin, w ? w + begin : nullptr, size,
                                                    s.shift, s.factor);
                           }) /
         row.weights.total;
}

// log sum_n w exp(-beta (E - m)), of warm and small rows.
template <typename T>
static double log_sum_of(const Row<T>& row, const Settled<T>& s) {
  if (s.regime == kSmall) return __builtin_log1p(deficit_of(row, s));
  const T* e = s.e;
  T shift = s.shift, factor = s.factor;
  if (row.weights.log2_w) {
    T* exponents = row.scratch + row.size;
    shift = write_exponents(row, s, exponents);
    e = exponents;
    factor = T(1);
  }
  const double sum = total_over_pieces(row, [&](int64_t begin, int64_t size) {
    return sum_of_powers(e + begin, size, shift, factor);
  });
  const double log_sum = row.weights.log2_w ? __builtin_log(sum) + double(shift) * kLn2
                                            : __builtin_log(sum / row.weights.total);
  // The logarithm of a sum near 1 loses digits.
  return log_sum > kSmallL ? __builtin_log1p(deficit_of(row, s)) : log_sum;
}

// F of the row.
template <typename T>
static T softmin_of(const Row<T>& row) {
  const Settled<T> s = settle(row);
  const T nan = T(__builtin_nan(""));
  double gap = 0;
  if (s.regime == kSkip || (s.regime == kHot && s.mixed)) return nan;
  if (s.regime == kHot) {
    gap = __builtin_inf();
    if (!s.far) {
      const T* w = row.weights.w;
      const double sum = total_over_pieces(row, [&](int64_t begin, int64_t size) {
        return sum_of_excess(s.e + begin, w ? w + begin : nullptr, size, s.shift);
      });
      gap = (s.e == row.energy ? row.sign() : 1) * sum / row.weights.total / s.unit;
    }
  } else if (s.regime != kCold) {
    gap = -log_sum_of(row, s) / row.beta;
  }
  return T(row.sign() * (is_finite(s.m) ? s.m + gap : s.m));
}

// The p that are 0 so that `by` p is no subnormal number. A `by` below 2^-52 is not ordinary: its
// products may be.
template <typename T>
static T least_share(double sum, T by) {
  const double size = by < 0 ? -by : by, least = __builtin_exp2(double(kLeastShare<T>));
  return T(sum * least / (size > 1 ? 1 : size > 0x1p-52 ? size : 0x1p-52));
}

// p of the row, times `by`.
template <typename T>
static void softargmin_of(const Row<T>& row, T by, T* out) {
  const Settled<T> s = settle(row);
  if (s.regime == kSkip) return fill(out, row.size, T(__builtin_nan("")));
  if (s.regime == kHot && !row.weights.w && !s.far)
    return fill(out, row.size, T(by / row.weights.total));
  const T* e = s.e;
  T shift = s.shift, factor = s.factor;
  if (row.weights.w || s.regime == kHot || s.regime == kCold) {
    shift = write_exponents(row, s, out);
    e = out;
    factor = T(1);
  }
  const double sum = total_over_pieces(row, [&](int64_t begin, int64_t size) {
    return write_powers(e + begin, size, shift, factor, kLeastShare<T>, out + begin);
  });
  const T low = least_share(sum, by);
  each_piece(
      row, [&](int64_t begin, int64_t size) { scale_powers(out + begin, size, low, T(by / sum)); });
}

LEBM_END_TARGET
