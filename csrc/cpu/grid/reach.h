// Bounds on the energies of a block of latents, for a vector of queries:
//
//     sum_d max(|u_d| - h_d, 0)^2 + least r <= E <= sum_d (|u_d| + h_d)^2 + r,   u = y - s c
//
// for a block of centre c whose box reaches h / |s| [D] from it, latents' own energies r and
// queries y, s [D].
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

// How far a block lies from a vector of queries. Bounds from its box are tighter than those from
// the ball about it, and need no root.
template <typename T, int kD>
struct Reach {
  Vec<T> u[kD], square;      // u and |u|^2
  Vec<T> nearest, farthest;  // bounds on all |y - s g|^2, rounding included
  Vec<T> width;              // a bound on ||u|^2 - |y - s g|^2|

  // `queries` has arrays y[d] and s[d]; their numbers from q on are loaded.
  template <typename Queries>
  LEBM_INLINE Reach(const Grid<T>& grid, int64_t i, const Queries& queries, int64_t q) {
    // Rounding error of these bounds (2 eps), and of the energies they are compared with (3 eps of
    // a square).
    const Vec<T> zero = broadcast(T(0)), margin = broadcast(8 * Exponent<T>::epsilon);
    square = nearest = farthest = zero;
    for (int d = 0; d < kD; ++d) {
      const Vec<T> s = load(queries.s[d] + q), centre = broadcast(grid.centre[i * kD + d]);
      u[d] = fnma(s, centre, load(queries.y[d] + q));
      square = fma(u[d], u[d], square);
      const Vec<T> half = size_of(mul(s, broadcast(grid.half[i * kD + d]))), size = size_of(u[d]);
      const Vec<T> most = add(size, half);
      Vec<T> rounded = most;
      if constexpr (!kFused)
        rounded = select_equal(s, broadcast(T(1)), most, add(most, size_of(mul(s, centre))));
      const Vec<T> far = fma(margin, rounded, most);
      const Vec<T> near = max(fnma(margin, rounded, sub(size, half)), zero);
      nearest = fma(near, near, nearest);
      farthest = fma(far, far, farthest);
    }
    width = sub(farthest, square);
  }

  // Below all of the block's energies, as computed.
  LEBM_INLINE Vec<T> lower_end(const Grid<T>& grid, int64_t i) const {
    return add(nearest, broadcast(grid.r_floor[i] - rounding_of(grid.r_floor[i])));
  }
  // Above one of them, that of the latent with the least latent energy.
  LEBM_INLINE Vec<T> upper_end(const Grid<T>& grid, int64_t i) const {
    return add(farthest, broadcast(grid.r_floor[i] + rounding_of(grid.r_floor[i])));
  }

 private:
  static LEBM_INLINE Vec<T> size_of(Vec<T> x) { return max(x, sub(broadcast(T(0)), x)); }
};

LEBM_END_TARGET
