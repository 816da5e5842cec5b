// The row pass: queries outside, latents inside, one block at a time. For every query it finds
//
//     m = min_n E,   L = log sum_n w exp(-beta (E - m)),   F = m - L/beta
//
// and, where slopes are wanted, moments of the posterior weights p = w exp(-beta (E - m) - L).
// Shapes: query y[D], s[D]; latents g[n][D]; vectors of moments [D].
//
// The shift m is the least energy seen so far: when a block brings a lesser one, the sums are
// rescaled, at most once a block. Sums run in T within a block and in double across blocks; where T
// is double, sums that are not vectors also keep their rounding errors (Total).
//
// Where all of beta (E - m) is small, the logarithm of a sum near 1 would lose L. Then the sum of
// w (exp(-beta (E - m)) - 1) is taken instead (kSmall), or at beta = 0 that of w (E - m) (kHot). A
// warm query whose sum turns out to be near 1 gets a second pass as kSmall.
//
//     <E> = m + <E - m>,   KL(p|w) = -beta <E - m> - L,   dF/dbeta = -KL / beta^2
//
// Where most of KL cancels, a further pass sums it anew (rows/slope.h).
#pragma once

#include "../common.h"
#include "../regime.h"

LEBM_BEGIN_TARGET

// The most queries in a tile at D <= 4.
constexpr int64_t kNarrowTile = 32;

// What is summed beside the sum itself: nothing; p v; p v, p v^2 and p log2 p.
enum Level { kSumOnly, kMean, kAllMoments };

template <typename T>
struct Query {
  Regime regime;
  T rate;          // beta log2 e
  T gap;           // c - m, for kSlope
  T unit;          // Z, for kHot and kSlope: times this, energies are numbers of ordinary size
                   // (in kHot, of size kTermLift)
  T ratio;         // Z / beta, for kSlope; 0 at beta = 0
  T square_scale;  // the largest s^2, at D > 4
  double beta;
  const T *y, *s;
};

// The sums of one query over the blocks seen so far, relative to the shift m and to 2^offset.
template <typename T>
struct Sums {
  double shift, offset;
  // Of p; of p - w in kSmall, of w Z (m - E) in kHot, of w (Z a)^2 Phi in kSlope.
  Total<T> sum;
  // Of p; of w Z a Psi in kSlope. Its value, without the rounding errors, divides the vectors.
  Total<T> mass;
  Total<T> excess;  // of p log2(exp(-beta (E - m)))
  Total<T> weight;  // of w
  int64_t index;    // the latent of the least energy; negative where it isn't wanted
};

struct Vectors {     // [D] each, or null
  double* residual;  // sum p (y - s g)
  double* stretch;   // sum p g (y - s g)
  double* mean;      // sum p g
};

template <typename T>
static void clear(Sums<T>& a, Vectors& v, int64_t D, double shift, bool wants_index) {
  a = {shift, -__builtin_inf(), {}, {}, {}, {}, wants_index ? 0 : -1};
  for (int64_t d = 0; d < D; ++d) {
    if (v.residual) v.residual[d] = 0;
    if (v.stretch) v.stretch[d] = 0;
    if (v.mean) v.mean[d] = 0;
  }
}

template <typename T>
static void multiply(Sums<T>& a, Vectors& v, int64_t D, double factor) {
  a.mass *= factor;
  a.excess *= factor;
  for (int64_t d = 0; d < D; ++d) {
    if (v.residual) v.residual[d] *= factor;
    if (v.stretch) v.stretch[d] *= factor;
    if (v.mean) v.mean[d] *= factor;
  }
}

// 2^bits for bits <= 0: the factor that rescales sums to a lesser m. A factor below every posterior
// weight that counts is 0, since arithmetic on subnormal numbers is slow.
LEBM_INLINE double factor_of_sums(double bits) {
  return bits < Exponent<double>::lowest ? 0.0 : __builtin_exp2(bits);
}

// Makes the sums relative to a lesser m.
template <typename T>
static void lower_shift(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& v, int64_t D,
                        double m) {
  const double fall = a.shift - m;
  a.shift = m;
  // Weights may underflow where p does not: a block may have brought mass without weight.
  if (!(fall > 0) || (a.weight == 0 && a.mass == 0)) return;
  const double bits = double(q.rate) * fall;
  switch (q.regime) {
    case kWarm:
      if (a.mass == 0) break;  // all pruned so far, and `bits` may be infinite
      a.excess += -bits * a.mass;
      if (weighted) {
        a.offset -= bits;
      } else {
        const double factor = factor_of_sums(-bits);
        a.sum *= factor;
        multiply(a, v, D, factor);
      }
      break;
    case kSmall: {
      const double factor = factor_of_sums(-bits);
      a.excess += -bits * a.mass;
      a.sum *= factor;
      a.sum += a.weight * __builtin_expm1(-bits * kLn2);
      multiply(a, v, D, factor);
      break;
    }
    case kHot:
      a.sum += -fall * q.unit * a.weight;
      break;
    case kCold:
      a.sum = {};
      a.offset = -__builtin_inf();
      multiply(a, v, D, 0.0);
      break;
    default:
      break;
  }
}

// Makes the sums relative to a larger 2^offset (weighted kWarm and kCold only).
template <typename T>
static void raise_offset(Sums<T>& a, Vectors& v, int64_t D, double offset) {
  if (!(offset > a.offset)) return;
  const double factor = a.mass == 0 ? 0.0 : factor_of_sums(a.offset - offset);
  a.offset = offset;
  a.sum *= factor;
  multiply(a, v, D, factor);
}

// a += b, in the order of the latents (a before b): the first of equal minima keeps the index.
template <typename T>
static void merge(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& va, Sums<T>& b,
                  Vectors& vb, int64_t D) {
  if (b.shift < a.shift || (b.shift == a.shift && b.index < a.index)) a.index = b.index;
  lower_shift(q, weighted, a, va, D, b.shift < a.shift ? b.shift : a.shift);
  lower_shift(q, weighted, b, vb, D, a.shift);
  raise_offset(a, va, D, b.offset);
  raise_offset(b, vb, D, a.offset);
  a.sum += b.sum;
  a.mass += b.mass;
  a.excess += b.excess;
  a.weight += b.weight;
  for (int64_t d = 0; d < D; ++d) {
    if (va.residual) va.residual[d] += vb.residual[d];
    if (va.stretch) va.stretch[d] += vb.stretch[d];
    if (va.mean) va.mean[d] += vb.mean[d];
  }
}

// Prunes a block for a query: only the block's weight counts.
template <typename T>
static void prune(Regime regime, double weight, Sums<T>& a) {
  a.weight += weight;
  if (regime == kSmall) a.sum += -weight;
}

// The sums of one block, still in T.
template <typename T>
struct BlockSums {
  T sum, mass, excess;
};

// From sum p v and sum p v^2 of a block to the sums over p of g, y - s g and g (y - s g).
LEBM_INLINE void add_moments(int64_t d, double first, double second, double mass, double centre,
                             double y, double s, Vectors& v) {
  const double u = y - s * centre;
  if (v.mean) v.mean[d] += centre * mass + first;
  if (v.residual) v.residual[d] += u * mass - s * first;
  if (v.stretch) v.stretch[d] += centre * (u * mass - s * first) + u * first - s * second;
}

LEBM_END_TARGET
