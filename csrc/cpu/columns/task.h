// The column pass: latents outside, queries inside. It finds the gradients of the latent-side
// arguments from the row pass's state; p is not stored but found again.
//
//     p          = w exp(-beta (E - m) - L)
//     grad_g[n]  = -2 sum_b G p s (y - s g)                          [N][D]
//     grad_r[n]  = sum_b G p                                         [N]
//     grad_l[n]  = -sum_b G (p - w) / beta,   which for small beta is   [N]
//                = -sum_b G w (exp(tau) - 1) / beta,   tau = -beta (E - F),   and at 0
//                =  sum_b G w (E - F)
//
// Queries are sorted by regime, so that the inner loops have no branch. Sums run in T over a chunk
// of queries and in double across chunks.
#pragma once

#include "../grid/grid.h"
#include "../regime.h"

LEBM_BEGIN_TARGET

constexpr int64_t kChunk = 256;

// A query as the inner loops read it; its y and s lie in arrays of their own.
template <typename T>
struct ColumnQuery {
  T shift;      // m
  T rate;       // beta log2 e
  T log2_mass;  // integer part of log2 of the mass: 2^-log2_mass is taken in the exponent
  T grad;       // the incoming gradient G times the rest of the normalisation
  T gap;        // F - m
  T pull;       // the factor of grad_l's term: grad / beta, G / beta or G
};

template <typename T>
struct ColumnTask {
  const Grid<T>* grid;
  const ColumnQuery<T>* queries;
  const T *y, *s;       // [M][D], in the order of `queries`
  const int64_t* ends;  // [kRegimes + 1]
  bool wants_l, has_scale;
  double log2_tol;  // log2 of the fraction of a sum that may be pruned
};

// The sums of a block of latents: D of grad_g for each latent, one of grad_r and two of grad_l. g,
// r and l lie one behind the other.
template <typename T>
struct ColumnSums {
  T *g, *r, *l;             // [D][block], [block], [block], over a chunk
  double *g_all, *r_all;    // the same over all chunks
  double *l_all, *l_small;  // [block]: grad_l of kWarm, and of kSmall and kHot without w
};

// G p of one vector of latents, from its energies e; adds grad_l's term to l.
template <typename T, Regime kRegime, bool kWeighted, bool kWantsL>
LEBM_INLINE Vec<T> grad_p_of(const ColumnQuery<T>& q, Vec<T> e, Vec<T> log2_w, Vec<T> w,
                             Vec<T>& l) {
  const Vec<T> excess = sub(e, broadcast(q.shift));
  if constexpr (kRegime == kCold) {
    Vec<T> x = broadcast(-q.log2_mass);
    // The weight of a latent that is no minimum may be out of range.
    if (kWeighted) x = min(add(log2_w, x), broadcast(-Exponent<T>::lowest));
    return select_equal(e, broadcast(q.shift), mul(exp2_of<T>(x), broadcast(q.grad)),
                        broadcast(T(0)));
  } else if constexpr (kRegime == kWarm) {
    Vec<T> x = fma(excess, broadcast(-q.rate), broadcast(-q.log2_mass));
    if (kWeighted) x = add(x, log2_w);
    const Vec<T> p = exp2_of<T>(x);
    if (kWantsL) l = fma(p, broadcast(q.pull), l);
    return mul(p, broadcast(q.grad));
  } else {
    const Vec<T> a = sub(excess, broadcast(q.gap)), x = mul(a, broadcast(-q.rate));
    Vec<T> value;
    const Vec<T> minus = exp2m1_of<T>(x, value);
    if (kWantsL) l = fma(kRegime == kHot ? a : minus, broadcast(q.pull), l);
    return mul(mul(w, weighted_power<T>(value, x, log2_w)), broadcast(q.grad));
  }
}

// Adds the sums of a chunk of queries, except for grad_l.
template <typename T>
static void add_chunk(int64_t D, int64_t size, const ColumnSums<T>& sums) {
  for (int64_t i = 0; i < D * size; ++i) sums.g_all[i] += sums.g[i];
  for (int64_t i = 0; i < size; ++i) sums.r_all[i] += sums.r[i];
}

LEBM_END_TARGET
