// The row pass by series: adds 2^start sum_k C_k a^k and its derivatives to each query's sums; see
// powers.h and layers.h.
#pragma once

#include "../rows/plan.h"
#include "powers.h"

LEBM_BEGIN_TARGET

// Adds block i of a layer to the sums of the queries `at`.
template <typename T, int kD, Level kLevel>
static void series_block(const Grid<T>& grid, int64_t i, const BlockSeries<T>& series,
                         const Plan<T, kD>& plan, const int64_t* at, int64_t count,
                         const Query<T>* queries, Sums<T>* sums, Vectors* vectors) {
  constexpr int kV = 4;
  constexpr int64_t kSome = kV * kLanes<double>;
  const double* width = series.width + i * kD;
  const double weight = grid.block_weight[i];
  for (int64_t begin = 0; begin < count; begin += kSome) {
    const int64_t some = count - begin < kSome ? count - begin : kSome;
    alignas(64) double a[kD][kSome], value[kSome], first[kD][kSome], half_second[kD][kSome];
    int order = 0;
    for (int64_t k = 0; k < kSome; ++k) {
      const int64_t q = at[begin + (k < some ? k : 0)];
      order = plan.order[q] > order ? plan.order[q] : order;
      for (int d = 0; d < kD; ++d) a[d][k] = double(plan.linear[d][q]) * (kLn2 * width[d]);
    }
    VecD x[kV][kD];
    SeriesValues<kD, int(kLevel), kV> sum_;
    for (int v = 0; v < kV; ++v)
      for (int d = 0; d < kD; ++d) x[v][d] = load(a[d] + v * kLanes<double>);
    evaluate<kD, int(kLevel), kV>(order + int(kLevel), series.order,
                                  series.coefficients + i * series.terms, x, sum_);
    for (int v = 0; v < kV; ++v) {
      store(value + v * kLanes<double>, sum_.value[v]);
      for (int d = 0; d < kD; ++d) {
        store(first[d] + v * kLanes<double>, sum_.first[v][d]);
        store(half_second[d] + v * kLanes<double>, sum_.half_second[v][d]);
      }
    }
    for (int64_t k = 0; k < some; ++k) {
      const int64_t q = at[begin + k];
      Sums<T>& sum = sums[q];
      const double factor = plan.factor[q], mass = factor * value[k];
      const bool is_small = queries[q].regime == kSmall;
      sum.sum += is_small ? factor * (value[k] - weight) + weight * plan.factor_minus_1[q] : mass;
      sum.mass += mass;
      sum.weight += weight;
      if constexpr (kLevel >= kMean) {
        double excess = plan.start[q] * mass;
        for (int d = 0; d < kD; ++d) {
          const double moment = factor * width[d] * first[d][k];
          const double second = 2 * factor * width[d] * width[d] * half_second[d][k];
          excess += plan.linear[d][q] * moment - plan.quadratic[d][q] * second;
          add_moments(d, moment, second, mass, grid.centre[i * kD + d], queries[q].y[d],
                      queries[q].s[d], vectors[q]);
        }
        if (kLevel == kAllMoments && !is_small) sum.excess += excess;
      }
    }
  }
}

LEBM_END_TARGET
