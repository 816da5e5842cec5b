// Sums of outer products, held in registers:
//
//     out[a][d] += sum_k factor[a][k] x[k][d]
//
// for rows a, terms k and columns d: out [rows][row], x [count][row].
#pragma once

#include "../common.h"
#include "exponential.h"

LEBM_BEGIN_TARGET

// The same for kA rows a and kV vectors of d. `of_row` and `of_term` are the strides of `factor` in
// a and k. kSquared: x^2 in place of x.
template <typename T, int kA, int kV, bool kSquared>
LEBM_INLINE void add_outer_products(const T* factor, int64_t of_row, int64_t of_term, const T* x,
                                    int64_t count, int64_t row, T* out) {
  Vec<T> total[kA][kV];
  for (int a = 0; a < kA; ++a)
    for (int i = 0; i < kV; ++i) total[a][i] = broadcast(T(0));
  for (int64_t k = 0; k < count; ++k) {
    Vec<T> xs[kV];
    for (int i = 0; i < kV; ++i) {
      xs[i] = load(x + k * row + i * kLanes<T>);
      if (kSquared) xs[i] = mul(xs[i], xs[i]);
    }
    for (int a = 0; a < kA; ++a) {
      const Vec<T> by = broadcast(factor[a * of_row + k * of_term]);
      for (int i = 0; i < kV; ++i) total[a][i] = fma(by, xs[i], total[a][i]);
    }
  }
  for (int a = 0; a < kA; ++a) {
    for (int i = 0; i < kV; ++i) {
      T* place = out + a * row + i * kLanes<T>;
      store(place, add(load(place), total[a][i]));
    }
  }
}

// The same for any number of rows that is a multiple of eight, and rows of any length.
constexpr int64_t kOuterGroup = 8;

// Terms are taken in slabs whose x stay in the first cache; a sum of their sums rounds less than
// one long sum.
constexpr int64_t kTerms = 48;

template <typename T, bool kSquared>
static void add_product_of_slab(const T* factor, int64_t of_row, int64_t of_term, const T* x,
                                int64_t count, int64_t row, int64_t rows, T* out) {
  int64_t d = 0;
  auto strip = [&](auto group, auto vectors) {
    for (int64_t a = 0; a < rows; a += group.value) {
      add_outer_products<T, group.value, vectors.value, kSquared>(
          factor + a * of_row, of_row, of_term, x + d, count, row, out + a * row + d);
    }
    d += vectors.value * kLanes<T>;
  };
  while (d < row) {
    const int64_t left = (row - d) / kLanes<T>;
    if (left == 1) {
      strip(Constant<int, 8>{}, Constant<int, 1>{});
    } else if (left == 2 || left == 4) {
      strip(Constant<int, 4>{}, Constant<int, 2>{});
    } else {
      strip(Constant<int, 4>{}, Constant<int, 3>{});
    }
  }
}

template <typename T, bool kSquared>
static void add_product(const T* factor, int64_t of_row, int64_t of_term, const T* x, int64_t count,
                        int64_t row, int64_t rows, T* out) {
  for (int64_t k = 0; k < count; k += kTerms) {
    add_product_of_slab<T, kSquared>(factor + k * of_term, of_row, of_term, x + k * row,
                                     count - k < kTerms ? count - k : kTerms, row, rows, out);
  }
}

LEBM_END_TARGET
