// The column pass at D <= 4, pair by pair: for queries [first, last) and a block of latents
//
//     E = r + |y - s g|^2,   sum_b G p [block],   sum_b G p s (y - s g) [D][block],   sum_b grad_l
//     [block]
#pragma once

#include "task.h"

LEBM_BEGIN_TARGET

template <typename T, int kD, Regime kRegime, bool kWeighted, bool kWantsL, bool kHasScale>
static void narrow_block(const ColumnTask<T>& task, const Block<T>& block, int64_t first,
                         int64_t last, const ColumnSums<T>& sums) {
  const int64_t size = task.grid->block;
  for (int64_t j = 0; j < size; j += kLanes<T>) {
    Vec<T> g[kD], sum_g[kD], r = broadcast(T(0)), l = broadcast(T(0));
    for (int d = 0; d < kD; ++d) {
      g[d] = load(block.g + d * size + j);
      sum_g[d] = broadcast(T(0));
    }
    const Vec<T> r0 = load(block.r + j), log2_w = load(block.log2_w + j), w = load(block.w + j);
    for (int64_t q = first; q < last; ++q) {
      const T *y = task.y + q * kD, *s = task.s + q * kD;
      Vec<T> difference[kD], e = r0;
      for (int d = 0; d < kD; ++d) {
        difference[d] = fnma(broadcast(s[d]), g[d], broadcast(y[d]));
        e = fma(difference[d], difference[d], e);
      }
      const Vec<T> grad_p =
          grad_p_of<T, kRegime, kWeighted, kWantsL>(task.queries[q], e, log2_w, w, l);
      r = add(r, grad_p);
      for (int d = 0; d < kD; ++d) {
        const Vec<T> pull = kHasScale ? mul(grad_p, broadcast(s[d])) : grad_p;
        sum_g[d] = fma(pull, difference[d], sum_g[d]);
      }
    }
    for (int d = 0; d < kD; ++d) store(sums.g + d * size + j, sum_g[d]);
    store(sums.r + j, r);
    if (kWantsL) store(sums.l + j, l);
  }
  add_chunk(kD, size, sums);
  double* l_all = kRegime == kWarm ? sums.l_all : sums.l_small;
  for (int64_t i = 0; kWantsL && i < size; ++i) l_all[i] += sums.l[i];
}

LEBM_END_TARGET
