// dF/dbeta where exponents are small, see sums.h.
#pragma once

#include "../grid/energy.h"
#include "sums.h"

LEBM_BEGIN_TARGET

// How many roundings F may be from the energy of a latent, to count as that: more than any sum has,
// and too few for the square of the difference to show beside the energies' roundings. slope_about
// wants beta times the difference to be small.
constexpr double kGapRoundings = 1024, kMostOfGap = 0.25;

// Lets a query's sums for dF/dbeta be about `energy`, where F cannot be told from it.
template <typename T>
LEBM_INLINE void settle_gap(double least, T energy, Query<T>& q) {
  const T gap = energy - T(least);
  const double apart = __builtin_fabs(double(gap) - double(q.gap));
  const double size = __builtin_fabs(least) + __builtin_fabs(double(q.gap));
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
    if (queries[q].mode != kSlope) continue;
    store(energy, energy_of<T, kD>(block, grid.block, j - lane, queries[q].y, queries[q].s));
    settle_gap(sums[q].least, energy[lane], queries[q]);
  }
}

// dF/dbeta from the sums of w a^2 Phi and of w a Psi, see rows.h. Never above 0.
LEBM_INLINE double slope_about(double beta, double second, double first) {
  const double rest = -beta * first;
  if (!(rest > -0.5 && rest < 0.5)) return -second;
  const double delta = beta == 0 ? first : -__builtin_log1p(rest) / beta;
  const double phi = least(phi_near<double>(broadcast(-beta * delta)));
  const double relative = second - delta * delta * phi;
  return relative > 0 ? -__builtin_exp(beta * delta) * relative : relative <= 0 ? 0.0 : relative;
}

LEBM_END_TARGET
