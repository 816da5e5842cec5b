// Sums of exponentials over many points as one power series.
//
//   sum_j h_j exp(a . x_j) = sum_k C_k a^k,     C_k = 1/k! sum_j h_j x_j^k,     |k| < order
//
// where k runs over the exponents of a monomial in D = 1 or 2 variables. Once the C are known, a
// sum over hundreds of points costs as many products as there are monomials, whatever a is. Its
// derivatives by a are the sums of h exp(a . x) x and h exp(a . x) x^2. (The fast Gauss transform
// of Greengard and Strain, 1991, in Taylor form.)
//
// With a bound X on |a . x|, the series leaves out at most X^order / order! of an exponential where
// a . x > 0, and of 1 elsewhere; Horner's rule loses e^X roundings of sum_j h_j. All of it is done
// in double. order_for tells how many terms a sum needs.
#pragma once

#include "../common.h"
#include "../simd/exponential.h"

LEBM_BEGIN_TARGET

constexpr int64_t kSeriesStride = 36;  // length of a row of sums: the order and its padding
constexpr int64_t kSeriesPoints = 32;  // points whose powers are held at once
constexpr int kMostOrder = 34;         // for sums; two derivatives need two more

template <int kD>
constexpr int64_t kPowerSums = kD == 1 ? kSeriesStride : kSeriesStride * kSeriesStride;

// Coefficients lie row by row, row a from C_a0 to the last of degree below `order`.
LEBM_INLINE int64_t row_start(int64_t a, int64_t order) { return a * order - a * (a - 1) / 2; }
LEBM_INLINE int64_t series_terms(int64_t D, int64_t order) {
  return D == 1 ? order : row_start(order, order);
}

constexpr int kNoOrder = 255;

// The least order with X^order / order! <= 2^-bits, for X < (i + 1) / 4 and bits <= 4 j.
struct OrderTable {
  static constexpr int kReaches = 40, kBits = 20;
  unsigned char at[kReaches][kBits];
};

constexpr OrderTable order_table() {
  OrderTable table{};
  for (int i = 0; i < OrderTable::kReaches; ++i) {
    for (int j = 0; j < OrderTable::kBits; ++j) {
      const double x = double(i + 1) / 4;
      double left = 1;
      for (int k = 0; k < j; ++k) left *= 16;
      int order = 0;
      // Terms grow until the order passes x.
      while (order <= kMostOrder && (left > 1 || double(order) < x)) left *= x / ++order;
      table.at[i][j] = order <= kMostOrder ? (unsigned char)order : (unsigned char)kNoOrder;
    }
  }
  return table;
}

constexpr OrderTable kOrderTable = order_table();

// The order that makes a sum as exact as it must be, or kNoOrder. `below`: the block's largest
// exponential is at most 2^-below of the sum over all N that it is added to.
//
// One of two conditions must hold. (1) The relative error of the block's sum is one rounding; its
// terms are all at least e^-X h. (2) The error of each term is below 1/N of a rounding of the whole
// sum. The same holds for moments about the block's centre.
template <typename T>
LEBM_INLINE int order_for(T reach, T below, T log2_N) {
  constexpr T rounding = sizeof(T) == 4 ? T(26) : T(55), own = sizeof(T) == 4 ? T(6) : T(1.25);
  const T of_whole = rounding + log2_N - below, spare = 53 - rounding - log2_N;
  if (!(reach < T(OrderTable::kReaches) / 4)) return kNoOrder;
  const T growth = reach * T(kLog2E);
  T bits = reach < own ? rounding + growth : T(4 * OrderTable::kBits);
  if (growth <= below + spare && of_whole < bits) bits = of_whole > 0 ? of_whole : T(0);
  const int j = int(bits * T(0.25)) + 1;
  return j < OrderTable::kBits ? kOrderTable.at[int(reach * 4)][j] : kNoOrder;
}

// Sums of monomials, one vector of partial sums each.
template <int kD>
struct PowerSums {
  alignas(64) VecD at[kPowerSums<kD>];

  void clear() {
    for (VecD& x : at) x = broadcast(0.0);
  }
};

// table[k][j] = first_j x_j^k for k < order, of kSeriesPoints points.
static void powers(int64_t order, const double* first, const double* x, double* table) {
  constexpr int64_t vectors = kSeriesPoints / kLanes<double>;
  VecD power[vectors], factor[vectors];
  for (int64_t i = 0; i < vectors; ++i) {
    power[i] = first ? load(first + i * kLanes<double>) : broadcast(1.0);
    factor[i] = load(x + i * kLanes<double>);
  }
  for (int64_t k = 0; k < order; ++k) {
    for (int64_t i = 0; i < vectors; ++i) {
      store(table + k * kSeriesPoints + i * kLanes<double>, power[i]);
      power[i] = mul(power[i], factor[i]);
    }
  }
}

// at[a][b] += sum_j left[a][j] right[b][j] for the monomials a + b < order, and a few more.
static void add_products(int64_t order, const double* left, const double* right, VecD* at) {
  constexpr int kA = 3, kB = 4;  // kSeriesStride is a multiple of both
  for (int64_t a = 0; a < order; a += kA) {
    for (int64_t b = 0; a + b < order; b += kB) {
      VecD total[kA][kB];
      for (int i = 0; i < kA; ++i)
        for (int k = 0; k < kB; ++k) total[i][k] = at[(a + i) * kSeriesStride + b + k];
      for (int64_t j = 0; j < kSeriesPoints; j += kLanes<double>) {
        VecD x[kB];
        for (int k = 0; k < kB; ++k) x[k] = load(right + (b + k) * kSeriesPoints + j);
        for (int i = 0; i < kA; ++i) {
          const VecD y = load(left + (a + i) * kSeriesPoints + j);
          for (int k = 0; k < kB; ++k) total[i][k] = fma(x[k], y, total[i][k]);
        }
      }
      for (int i = 0; i < kA; ++i)
        for (int k = 0; k < kB; ++k) at[(a + i) * kSeriesStride + b + k] = total[i][k];
    }
  }
}

// sums_k += sum_j h_j x_j^k for |k| < order, over `count` points, a multiple of kSeriesPoints;
// x[d] + j is a point's coordinate.
template <int kD>
static void add_powers(int64_t order, int64_t count, const double* h, const double* const* x,
                       PowerSums<kD>& sums) {
  alignas(64) double left[kSeriesStride * kSeriesPoints], right[kSeriesStride * kSeriesPoints];
  // add_products rounds the order up to a multiple of what it takes at a time.
  const int64_t left_order = (order + 2) / 3 * 3, right_order = (order + 3) / 4 * 4;
  for (int64_t start = 0; start < count; start += kSeriesPoints) {
    powers(left_order, h + start, x[0] + start, left);
    if constexpr (kD == 2) {
      powers(right_order, nullptr, x[1] + start, right);
      add_products(order, left, right, sums.at);
    } else {
      for (int64_t a = 0; a < order; ++a)
        for (int64_t j = 0; j < kSeriesPoints; j += kLanes<double>)
          sums.at[a] = add(sums.at[a], load(left + a * kSeriesPoints + j));
    }
  }
}

// The coefficients of the series from the sums of monomials.
template <int kD>
static void coefficients_of(int64_t order, const PowerSums<kD>& sums, double* coefficients) {
  double one[kSeriesStride];
  one[0] = 1;
  for (int64_t k = 1; k < kSeriesStride; ++k) one[k] = one[k - 1] / double(k);
  for (int64_t a = 0; a < order; ++a) {
    if constexpr (kD == 1) {
      coefficients[a] = one[a] * sum(sums.at[a]);
    } else {
      for (int64_t b = 0; a + b < order; ++b)
        coefficients[row_start(a, order) + b] =
            one[a] * one[b] * sum(sums.at[a * kSeriesStride + b]);
    }
  }
}

// The series and its derivatives (the first by each variable, and half the second) at kV vectors of
// points, in lockstep: a single chain of products would wait for itself. There are coefficients for
// the order `stored`; `order` <= stored is enough here.
template <int kD, int kDerivatives, int kV>
struct SeriesValues {
  VecD value[kV], first[kV][kD], half_second[kV][kD];
};

template <int kD, int kDerivatives, int kV>
static LEBM_INLINE void evaluate(int64_t order, int64_t stored, const double* coefficients,
                                 const VecD (&x)[kV][kD], SeriesValues<kD, kDerivatives, kV>& out) {
  const VecD zero = broadcast(0.0);
  for (int v = 0; v < kV; ++v) {
    out.value[v] = zero;
    for (int d = 0; d < kD; ++d) out.first[v][d] = out.half_second[v][d] = zero;
  }
  for (int64_t a = order - 1; a >= 0; --a) {
    VecD inner[kV], slope[kV], curve[kV];
    if constexpr (kD == 1) {
      for (int v = 0; v < kV; ++v) inner[v] = broadcast(coefficients[a]);
    } else {
      for (int v = 0; v < kV; ++v) inner[v] = slope[v] = curve[v] = zero;
      const double* row = coefficients + row_start(a, stored);
      for (int64_t b = order - 1 - a; b >= 0; --b) {
        const VecD coefficient = broadcast(row[b]);
        for (int v = 0; v < kV; ++v) {
          if constexpr (kDerivatives == 2) curve[v] = fma(curve[v], x[v][1], slope[v]);
          if constexpr (kDerivatives >= 1) slope[v] = fma(slope[v], x[v][1], inner[v]);
          inner[v] = fma(inner[v], x[v][1], coefficient);
        }
      }
    }
    for (int v = 0; v < kV; ++v) {
      if constexpr (kDerivatives == 2)
        out.half_second[v][0] = fma(out.half_second[v][0], x[v][0], out.first[v][0]);
      if constexpr (kDerivatives >= 1)
        out.first[v][0] = fma(out.first[v][0], x[v][0], out.value[v]);
      out.value[v] = fma(out.value[v], x[v][0], inner[v]);
      if constexpr (kD == 2 && kDerivatives == 2)
        out.half_second[v][1] = fma(out.half_second[v][1], x[v][0], curve[v]);
      if constexpr (kD == 2 && kDerivatives >= 1)
        out.first[v][1] = fma(out.first[v][1], x[v][0], slope[v]);
    }
  }
}

// The series of every block of a grid for queries that share beta and scale: x = v / width, |x| <=
// 1, and h = exp(-beta (s^2 . v^2 + r - least r of the block)).
template <typename T>
struct BlockSeries {
  double* coefficients;  // [num_blocks][terms]; null: none
  double* width;         // [num_blocks][D]
  int order;             // the highest with coefficients
  int64_t terms;
};

LEBM_END_TARGET
