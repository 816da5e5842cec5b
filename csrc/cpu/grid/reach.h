// Bounds on the energies of a block of latents, for a vector of queries:
//
//     (|u| - rho)^2 + least r <= E <= (|u| + rho)^2 + r,   u = y - s c
//
// for a block of centre c and radius rho [block], latents' own energies r and queries y, s [D].
#pragma once

#include "grid.h"

LEBM_BEGIN_TARGET

template <typename T>
constexpr T kRise = 16;

// The error of an exponent is one rounding of its largest term. The promised bound on F is 16
// roundings of (1 + log N) / beta, which is tighter for small N.
template <typename T>
LEBM_INLINE T most_fall(const Grid<T>& grid) {
  const double most = 6 * (1 + __builtin_log(double(grid.N)));
  return most < 100 ? T(most) : T(100);
}

// Whether the exponents show a rounding of the block's energies: beyond such beta |u|^2, only
// differences of attained energies are safe.
template <typename T>
LEBM_INLINE bool is_coarse(const Grid<T>& grid, int64_t i, T rate, T square) {
  const T low = grid.r_floor[i], high = grid.r_top[i];
  const T size = square + (low > 0 ? low : -low) + (high > 0 ? high : -high);
  return !(rate * size * Exponent<T>::epsilon < T(1.0 / 64));
}

// A bound on the rounding where a latent energy meets others: two roundings of each.
template <typename T>
LEBM_INLINE T rounding_of(T r) {
  return 16 * Exponent<T>::epsilon * (r < 0 ? -r : r);
}

// The default for log2_tol, log2 of the fraction of a sum that may be pruned: what rounding hides.
template <typename T>
constexpr double kLog2Rounding = sizeof(T) == 4 ? -26.0 : -55.0;

// How far a block lies from a vector of queries.
template <typename T, int kD>
struct Reach {
  Vec<T> u[kD], square, distance, radius;  // u, |u|^2, |u| and rho
  Vec<T> nearest, farthest;                // bounds on all |y - s g|, rounding included
  Vec<T> width;                            // a bound on ||u|^2 - |y - s g|^2|

  // `queries` has arrays y[d] and s[d]; their numbers from q on are loaded.
  template <typename Queries>
  LEBM_INLINE Reach(const Grid<T>& grid, int64_t i, const Queries& queries, int64_t q) {
    const Vec<T> zero = broadcast(T(0));
    Vec<T> size = zero;
    square = radius = zero;
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(queries.s[d] + q), centre = broadcast(grid.centre[i * kD + d]);
      u[d] = fnma(s, centre, load(queries.y[d] + q));
      square = fma(u[d], u[d], square);
      const Vec<T> half = mul(s, broadcast(grid.half[i * kD + d]));
      radius = fma(half, half, radius);
      if constexpr (!kFused) {
        const Vec<T> rounded = select_equal(s, broadcast(T(1)), zero, mul(s, centre));
        size = add(size, max(rounded, sub(zero, rounded)));
      }
    }
    distance = root(square);
    radius = root(radius);
    const Vec<T> most = add(distance, radius);
    // Rounding error of these bounds (2 eps), and of the energies they are compared with (1.5 eps).
    const Vec<T> margin = mul(broadcast(8 * Exponent<T>::epsilon), add(most, size));
    nearest = max(sub(sub(distance, radius), margin), zero);
    farthest = add(most, margin);
    width = mul(radius, add(distance, most));
  }

  // Below all of the block's energies, as computed.
  LEBM_INLINE Vec<T> lower_end(const Grid<T>& grid, int64_t i) const {
    return fma(nearest, nearest, broadcast(grid.r_floor[i] - rounding_of(grid.r_floor[i])));
  }
  // Above one of them, that of the latent with the least latent energy.
  LEBM_INLINE Vec<T> upper_end(const Grid<T>& grid, int64_t i) const {
    return fma(farthest, farthest, broadcast(grid.r_floor[i] + rounding_of(grid.r_floor[i])));
  }
};

LEBM_END_TARGET
