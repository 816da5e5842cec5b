// KL(p|w) = beta^2 K and dF/dbeta = -K where -beta <E - m> - L would cancel: one more pass (kSlope)
// sums
//
//     K = sum_n w (E - F)^2 Phi(-beta (E - F)),   Phi(x) = (e^x (x - 1) + 1) / x^2.
//
// Where one latent has nearly all of the weight, its E - F is only a rounding, and the square of
// that would be the sum. So the sums are taken about a c near F: the energy of that latent, where
// rounding can't tell F from it (settle_gap). With a = E - c and Psi(x) = (e^x - 1) / x
//
//     delta = F - c = -log(1 - beta sum_n w a Psi(-beta a)) / beta,
//     K = e^(beta delta) (sum_n w a^2 Phi(-beta a) - delta^2 Phi(-beta delta)).
//
// Squares of energies may leave the range of T where K beta^2 does not. So all energies are times
// Z, the larger of beta and 1 / F: the sums give K Z^2.
#pragma once

#include "../grid/energy.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// F counts as equal to the energy of a latent within this many roundings: more than the error of
// any sum, and too few for the square of the difference to show beside the energies' roundings.
// curvature_about needs beta times the difference to be small.
constexpr double kGapRoundings = 1024, kMostOfGap = 0.25;

// Moves c to `energy`, the energy of a latent, where rounding can't tell F from it.
template <typename T>
LEBM_INLINE void settle_gap(double shift, T energy, Query<T>& q) {
  const T gap = energy - T(shift);
  const double apart = __builtin_fabs(double(gap) - double(q.gap));
  const double size = __builtin_fabs(shift) + __builtin_fabs(double(q.gap));
  const double near = kGapRoundings * double(Exponent<T>::epsilon) * size;
  if (apart <= near && q.beta * apart <= kMostOfGap) q.gap = gap;
}

// The same for a tile, about the latent at `place`.
template <typename T, int kD>
static void settle_gaps(const Grid<T>& grid, int64_t place, const Sums<T>* sums, int64_t count,
                        Query<T>* queries) {
  const Block<T> block = grid.at(place / grid.block);
  const int64_t j = place % grid.block, lane = j % kLanes<T>;
  alignas(64) T energy[kLanes<T>];
  for (int64_t q = 0; q < count; ++q) {
    if (queries[q].regime != kSlope) continue;
    store(energy, energy_of<T, kD>(block, grid.block, j - lane, queries[q].y, queries[q].s));
    settle_gap(sums[q].shift, energy[lane], queries[q]);
  }
}

// Sets Z of a query, from its m and F - m, and what follows from it.
template <typename T>
LEBM_INLINE void set_unit(double shift, double gap, Query<T>& q) {
  const double size = __builtin_fabs(shift) + __builtin_fabs(gap), by_size = 1 / size;
  const double z = q.beta > by_size ? q.beta : by_size;
  q.unit = z > 0 && z <= kMost<T> ? T(z) : q.beta > 0 ? T(q.beta) : T(1);
  q.ratio = q.beta == 0 ? T(0) : T(double(q.unit) / q.beta);
}

// K Z^2 from the sums of w (Z a)^2 Phi (`second`) and of w Z a Psi (`first`); `rate` is beta / Z.
// Never below 0.
LEBM_INLINE double curvature_about(double rate, double second, double first) {
  const double rest = -rate * first;
  if (!(rest > -0.5 && rest < 0.5)) return second;
  const double delta = rate == 0 ? first : -__builtin_log1p(rest) / rate;
  const double phi = least(phi_near<double>(broadcast(-rate * delta)));
  const double relative = second - delta * delta * phi;
  return relative > 0 ? __builtin_exp(rate * delta) * relative : relative <= 0 ? 0.0 : relative;
}

LEBM_END_TARGET
