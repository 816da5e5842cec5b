// Bounds on the energies of a block of latents, for a vector of queries.
#pragma once

#include "grid.h"

LEBM_BEGIN_TARGET

template <typename T>
constexpr T kRise = 16;

// Rounding moves x by that of its largest term, at most this and, for few latents, less: F bears
// 16 roundings of (1 + log N) / beta.
template <typename T>
LEBM_INLINE T most_fall(const Grid<T>& grid) {
  const double most = 6 * (1 + __builtin_log(double(grid.N)));
  return most < 100 ? T(most) : T(100);
}

// Whether a rounding of a block's energies can be told from its exponents: at beta |u|^2 beyond
// this, only differences of attained energies are safe.
template <typename T>
LEBM_INLINE bool is_coarse(const Grid<T>& grid, int64_t i, T rate, T square) {
  const T low = grid.r_floor[i], high = grid.r_top[i];
  const T size = square + (low > 0 ? low : -low) + (high > 0 ? high : -high);
  return !(rate * size * Exponent<T>::epsilon < T(1.0 / 64));
}

// A bound on what rounds away when a latent energy meets others: two roundings of both, and theirs.
template <typename T>
LEBM_INLINE T rounding_of(T r) {
  return 16 * Exponent<T>::epsilon * (r < 0 ? -r : r);
}

// log2 of a share of the sum that cannot be seen, for the default tolerance.
template <typename T>
constexpr double kLog2Rounding = sizeof(T) == 4 ? -26.0 : -55.0;

// How far a block lies from a vector of queries.
template <typename T, int kD>
struct Reach {
  Vec<T> u[kD], square, distance, radius;  // u, |u|^2, |u| and rho
  Vec<T> nearest, farthest;  // within these lie all |y - s g|, whatever was rounded on the way
  Vec<T> width;              // |u|^2 - |y - s g|^2 is at most this in size

  // `queries` has y[d] and s[d] side by side, from q on.
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
    // Of their own, and of the energies that are held against them: some 2 and 1.5 of these each.
    const Vec<T> margin = mul(broadcast(8 * Exponent<T>::epsilon), add(most, size));
    nearest = max(sub(sub(distance, radius), margin), zero);
    farthest = add(most, margin);
    width = mul(radius, add(distance, most));
  }

  // Below all of the block's energies, as they are computed too.
  LEBM_INLINE Vec<T> lower_end(const Grid<T>& grid, int64_t i) const {
    return fma(nearest, nearest, broadcast(grid.r_floor[i] - rounding_of(grid.r_floor[i])));
  }
  // Above one of them: that of the latent which has the least latent energy.
  LEBM_INLINE Vec<T> upper_end(const Grid<T>& grid, int64_t i) const {
    return fma(farthest, farthest, broadcast(grid.r_floor[i] + rounding_of(grid.r_floor[i])));
  }
};

LEBM_END_TARGET
