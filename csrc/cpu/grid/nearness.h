// Which moments about a block's centre would be too inexact, at D > 4.
#pragma once

#include "grid.h"

LEBM_BEGIN_TARGET

// Whether a query is too near to a block for moments about its centre: the grid has few latents
// (kFewLatents), or the block's latents lie many times farther from the centre than the query from
// its nearest latent, and their posterior weights differ. The error is a rounding of one component
// of y - s g, which is smaller at larger D. Float sums are subtracted in double, which adds no
// rounding; double sums round once more. `square_scale` is the largest s^2.
template <typename T>
LEBM_INLINE bool is_too_near(const Grid<T>& grid, int64_t i, T smallest, T rate, T square_scale) {
  if (grid.has_few_latents()) return true;
  const T most = sizeof(T) == 4 ? 32 : 4, of_many = T(512) / T(grid.D);
  const T times = of_many > most ? most : of_many > 2 ? of_many : T(2);
  const T reach = square_scale * grid.extent[i];
  const bool differ = grid.weighted || !(rate * reach < T(2));
  return differ && times * (smallest - grid.r_top[i]) < reach;
}

template <typename T>
static T largest_square(const T* s, int64_t D) {
  T largest = 0;
  for (int64_t d = 0; d < D; ++d) largest = s[d] * s[d] > largest ? s[d] * s[d] : largest;
  return largest;
}

LEBM_END_TARGET
