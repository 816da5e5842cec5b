// Products of small matrices, held in registers: sums over the latents or the queries of a tile.
//
//     sum_over_latents   out[q][d]  = sum_j p[q][j] v[d][j]          out [queries][D]
//     sum_over_queries   out[d][j] += sum_q p[q][j] factor[q][d]     out [D][latents], for listed q
//
// If kSquared, v^2 takes the place of v.
#pragma once

#include "grid.h"

LEBM_BEGIN_TARGET

// Terms are summed in slabs that stay in the first cache; adding the sums of slabs rounds less than
// one long sum.
constexpr int64_t kTerms = 48;

// Sums for kA queries and kV vectors of dimensions: p[a][k] is broadcast, x [count][row] are
// latents row by row.
template <typename T, int kA, int kV, bool kSquared>
LEBM_INLINE void add_outer_products(const T* p, int64_t of_row, const T* x, int64_t count,
                                    int64_t row, T* out, int64_t out_row) {
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
      const Vec<T> by = broadcast(p[a * of_row + k]);
      for (int i = 0; i < kV; ++i) total[a][i] = fma(by, xs[i], total[a][i]);
    }
  }
  for (int a = 0; a < kA; ++a) {
    for (int i = 0; i < kV; ++i) {
      T* place = out + a * out_row + i * kLanes<T>;
      store(place, add(load(place), total[a][i]));
    }
  }
}

// Whole vectors of dimensions. The rows of p and out reach to a multiple of kSums queries.
template <typename T, bool kSquared>
static void add_whole_vectors(const T* p, int64_t size, const T* x, int64_t row, int64_t dims,
                              int64_t count, T* out, int64_t out_row) {
  for (int64_t k = 0; k < size; k += kTerms) {
    const int64_t terms = size - k < kTerms ? size - k : kTerms;
    int64_t d = 0;
    auto strip = [&](auto vectors) {
      constexpr int kA = kSums / vectors.value;
      for (int64_t a = 0; a < count; a += kA) {
        add_outer_products<T, kA, vectors.value, kSquared>(
            p + a * size + k, size, x + k * row + d, terms, row, out + a * out_row + d, out_row);
      }
      d += vectors.value * kLanes<T>;
    };
    while (d < dims) {
      const int64_t left = (dims - d) / kLanes<T>;
      if (left == 1)
        strip(Constant<int, 1>{});
      else if (left == 2 || left == 4)
        strip(Constant<int, 2>{});
      else
        strip(Constant<int, 3>{});
    }
  }
}

// kQ queries by kDims dimensions, over lanes of latents.
template <typename T, int kQ, int kDims, bool kSquared>
LEBM_INLINE void add_in_lanes(const T* p, const T* v, int64_t size, int64_t begin, int64_t end,
                              T* out, int64_t out_row) {
  Vec<T> total[kQ][kDims];
  for (int q = 0; q < kQ; ++q)
    for (int i = 0; i < kDims; ++i) total[q][i] = broadcast(T(0));
  for (int64_t j = begin; j < end; j += kLanes<T>) {
    Vec<T> by[kQ];
    for (int q = 0; q < kQ; ++q) by[q] = load(p + q * size + j);
    for (int i = 0; i < kDims; ++i) {
      Vec<T> x = load(v + i * size + j);
      if (kSquared) x = mul(x, x);
      for (int q = 0; q < kQ; ++q) total[q][i] = fma(by[q], x, total[q][i]);
    }
  }
  for (int q = 0; q < kQ; ++q)
    for (int i = 0; i < kDims; ++i) out[q * out_row + i] += sum(total[q][i]);
}

// Fewer dimensions than a vector has. The rows of p and out reach to a multiple of kLaneQueries.
constexpr int kLaneQueries = 3, kLaneDims = kSums / kLaneQueries;

template <typename T, bool kSquared>
static void add_few_dimensions(const T* p, int64_t size, const T* v, int64_t dims, int64_t count,
                               T* out, int64_t out_row) {
  // Longer sums of doubles would round more than the promise allows.
  const int64_t run = sizeof(T) == 8 ? 16 * kLanes<T> : size;
  for (int64_t d = 0; d < dims;) {
    auto strip = [&](auto of) {
      for (int64_t q = 0; q < count; q += kLaneQueries) {
        for (int64_t j = 0; j < size; j += run) {
          const int64_t end = j + run < size ? j + run : size;
          add_in_lanes<T, kLaneQueries, of.value, kSquared>(p + q * size, v + d * size, size, j,
                                                            end, out + q * out_row + d, out_row);
        }
      }
      d += of.value;
    };
    const int64_t left = dims - d;
    if (left >= kLaneDims)
      strip(Constant<int, kLaneDims>{});
    else if (left >= 3)
      strip(Constant<int, 3>{});
    else if (left == 2)
      strip(Constant<int, 2>{});
    else
      strip(Constant<int, 1>{});
  }
}

// The rows of p and out reach to a multiple of kSums; those past `count` are any numbers.
template <typename T, bool kSquared>
static void sum_over_latents(const T* p, const Block<T>& block, int64_t size, int64_t D,
                             int64_t count, T* out) {
  const int64_t whole = whole_vectors<T>(D);
  fill(out, (count + kSums - 1) / kSums * kSums * D, T(0));
  if (whole)
    add_whole_vectors<T, kSquared>(p, size, block.rows, row_length<T>(D), whole, count, out, D);
  if (whole < D)
    add_few_dimensions<T, kSquared>(p, size, block.v + whole * size, D - whole, count, out + whole,
                                    D);
}

// kDims dimensions by three vectors of latents.
template <typename T, int kDims, int kV>
LEBM_INLINE void add_over_queries(const T* p, int64_t size, const T* factor, int64_t row,
                                  const int64_t* queries, int64_t count, T* out) {
  Vec<T> total[kDims][kV];
  for (int d = 0; d < kDims; ++d)
    for (int i = 0; i < kV; ++i) total[d][i] = broadcast(T(0));
  for (int64_t k = 0; k < count; ++k) {
    const int64_t q = queries[k];
    Vec<T> of_pair[kV];
    for (int i = 0; i < kV; ++i) of_pair[i] = load(p + q * size + i * kLanes<T>);
    for (int d = 0; d < kDims; ++d) {
      const Vec<T> by = broadcast(factor[q * row + d]);
      for (int i = 0; i < kV; ++i) total[d][i] = fma(of_pair[i], by, total[d][i]);
    }
  }
  for (int d = 0; d < kDims; ++d) {
    for (int i = 0; i < kV; ++i) {
      T* place = out + d * size + i * kLanes<T>;
      store(place, add(load(place), total[d][i]));
    }
  }
}

// f(Constant<int, count>) for 1 <= count <= K.
template <int K, typename F>
LEBM_INLINE void with_constant(int64_t count, const F& f) {
  if constexpr (K > 1) {
    if (count < K) return with_constant<K - 1>(count, f);
  }
  f(Constant<int, K>{});
}

template <typename T>
static void sum_over_queries(const T* p, int64_t size, const T* factor, int64_t row, int64_t dims,
                             const int64_t* queries, int64_t count, T* out) {
  constexpr int kV = 3, kMostDims = kSums / kV;
  // Groups of nearly equal size: one dimension has too few sums to hide the latency of an FMA.
  const int64_t groups = (dims + kMostDims - 1) / kMostDims;
  for (int64_t j = 0; j < size; j += kV * kLanes<T>) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t d = dims * group / groups, end = dims * (group + 1) / groups;
      with_constant<kMostDims>(end - d, [&](auto of) {
        add_over_queries<T, of.value, kV>(p + j, size, factor + d, row, queries, count,
                                          out + d * size + j);
      });
    }
  }
}

LEBM_END_TARGET
