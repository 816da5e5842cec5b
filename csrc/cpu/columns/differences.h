// The column pass at D <= 4 without log-weights, for warm queries whose exponents
// about a block's centre would be too large: pair by pair, from differences d = y - s g.
//
//     G p = grad 2^x,   x = -rate (|d|^2 + r - m) - log2_mass,   sum_b G p [block],
//     sum_b G p s d [D][block]
//
// Energies are those of energy_of to the bit.
#pragma once

#include "task.h"

LEBM_BEGIN_TARGET

// The numbers of a query that the pair loop reads; those of x in units of Exp2.
template <typename T, int kD>
struct DifferenceColumn {
  T shift, rate, log2_mass, grad, y[kD], s[kD];

  DifferenceColumn() = default;
  DifferenceColumn(const ColumnQuery<T>& query, const T* at_y, const T* at_s)
      : shift(query.shift),
        rate(-Exp2<T>::kSteps * query.rate),
        log2_mass(-Exp2<T>::kSteps * query.log2_mass),
        grad(T(double(query.grad) * Exp2<T>::kUnit)) {
    for (int d = 0; d < kD; ++d) {
      y[d] = at_y[d];
      s[d] = at_s[d];
    }
  }
};

// Queries [0, count) against a block.
template <typename T, int kD, bool kHasScale>
static void difference_chunk(const Block<T>& block, int64_t size,
                             const DifferenceColumn<T, kD>* queries, int64_t count,
                             const ColumnSums<T>& sums) {
  constexpr int kL = kD <= 2 ? 2 : 1;
  const Exp2<T> power;
  for (int64_t j = 0; j < size; j += kL * kLanes<T>) {
    Vec<T> g[kD][kL], sum_g[kD][kL], r[kL], sum_r[kL];
    for (int i = 0; i < kL; ++i) {
      r[i] = load(block.r + j + i * kLanes<T>);
      sum_r[i] = broadcast(T(0));
      for (int d = 0; d < kD; ++d) {
        g[d][i] = load(block.g + d * size + j + i * kLanes<T>);
        sum_g[d][i] = broadcast(T(0));
      }
    }
    for (int64_t q = 0; q < count; ++q) {
      const DifferenceColumn<T, kD>& query = queries[q];
      const Vec<T> shift = broadcast(query.shift), rate = broadcast(query.rate);
      const Vec<T> log2_mass = broadcast(query.log2_mass), grad = broadcast(query.grad);
      Vec<T> difference[kD][kL], x[kL], p[kL], scale[kL];
      for (int i = 0; i < kL; ++i) x[i] = r[i];
      for (int d = 0; d < kD; ++d) {
        const Vec<T> y = broadcast(query.y[d]), s = broadcast(query.s[d]);
        for (int i = 0; i < kL; ++i) {
          difference[d][i] = kHasScale ? fnma(s, g[d][i], y) : sub(y, g[d][i]);
          x[i] = fma(difference[d][i], difference[d][i], x[i]);
        }
      }
      for (int i = 0; i < kL; ++i) x[i] = fma(sub(x[i], shift), rate, log2_mass);
      power.template bounded<true>(Exp2<T>::kLowest, x, p, scale);
      for (int i = 0; i < kL; ++i) {
        p[i] = mul(Exp2<T>::value(p[i], scale[i]), grad);
        sum_r[i] = add(sum_r[i], p[i]);
      }
      for (int d = 0; d < kD; ++d) {
        const Vec<T> s = broadcast(query.s[d]);
        for (int i = 0; i < kL; ++i)
          sum_g[d][i] = fma(kHasScale ? mul(p[i], s) : p[i], difference[d][i], sum_g[d][i]);
      }
    }
    for (int i = 0; i < kL; ++i) {
      store(sums.r + j + i * kLanes<T>, sum_r[i]);
      for (int d = 0; d < kD; ++d) store(sums.g + d * size + j + i * kLanes<T>, sum_g[d][i]);
    }
  }
  add_chunk(kD, size, sums);
}

LEBM_END_TARGET
