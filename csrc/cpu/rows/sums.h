// The row pass: queries outside, latents inside, a block at a time.
//
// For every query it finds, in one sweep,
//     m = min_n E,   L = log sum_n w exp(-beta (E - m)),   F = m - L/beta,
// and, where slopes are wanted, moments of p = w exp(-beta (E - m) - L). The reference m is the
// least energy seen so far: when a block brings a lesser one, the sums are rescaled, which happens
// once a block at most. Sums run in vector lanes within a block and in double across blocks, but
// for vectors with their roundings kept where T is double (Total).
//
// Where all of beta (E - m) is small, the logarithm of a sum near 1 would lose L, so that the sum
// of w (exp(-beta (E - m)) - 1) is taken instead (kSmall), or at beta = 0 that of w (E - m) (kHot).
// Queries whose sum turns out near 1 are swept again as kSmall; where dF/dbeta is wanted in those
// modes, one more sweep (kSlope) sums
//     dF/dbeta = -sum_n w (E - F)^2 Phi(-beta (E - F)),   Phi(x) = (e^x (x - 1) + 1) / x^2,
// which is -KL(p|w)/beta^2 without its cancellation; elsewhere KL = -beta <E - m> - L serves. Where
// one latent has nearly all of the weight, its E - F is a rounding, whose square would be the sum:
// so the sums are about a c near F, which is E of that latent where F cannot be told from it
// (settle_gap), and with a = E - c and Psi(x) = (e^x - 1) / x
//     delta = F - c = -log(1 - beta sum_n w a Psi(-beta a)) / beta,
//     dF/dbeta = -e^(beta delta) (sum_n w a^2 Phi(-beta a) - delta^2 Phi(-beta delta)).
#pragma once

#include "../common.h"
#include "../regime.h"

LEBM_BEGIN_TARGET

constexpr int64_t kTile = 32;

enum Mode : unsigned char { kSkip, kNormal, kSmall, kHot, kCold, kSlope };

// What is summed beside the sum itself: nothing; p v; p v, p v^2 and p log2 p.
enum Level { kSumOnly, kMean, kAllMoments };

template <typename T>
struct Query {
  Mode mode;
  T rate;     // beta log2 e
  T gap;      // c - m, for kSlope
  T inverse;  // 1 / beta, for kSlope; 0 at beta = 0
  T stretch;  // largest s^2, beyond kFewDimensions
  double beta;
  const T *y, *s;
};

// The sums of one query over the blocks seen so far, relative to `least` (m) and to 2^offset.
template <typename T>
struct Sums {
  double least, offset;
  Total<T> sum;  // of p; of p - w in kSmall, of w (m - E) in kHot, of w a^2 Phi in kSlope
  // Of p, its value alone rounded as vectors are, which it divides; of w a Psi in kSlope.
  Total<T> mass;
  Total<T> excess;  // of p log2(exp(-beta (E - m)))
  Total<T> seen;    // of w
  int64_t index;    // where the least energy is
};

struct Vectors {     // [D] each, or null
  double* residual;  // sum p (y - s g)
  double* stretch;   // sum p g (y - s g)
  double* mean;      // sum p g
};

template <typename T>
static void clear(Sums<T>& a, Vectors& v, int64_t D, double least) {
  a = {least, -__builtin_inf(), {}, {}, {}, {}, 0};
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

// Makes the sums relative to a lesser m.
template <typename T>
static void lower_least(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& v, int64_t D,
                        double m) {
  const double drop = a.least - m;
  a.least = m;
  // Weights may underflow where p does not: a block may have brought mass without weight.
  if (!(drop > 0) || (a.seen == 0 && a.mass == 0)) return;
  const double shift = double(q.rate) * drop;
  switch (q.mode) {
    case kNormal:
      if (a.mass == 0) break;  // left out so far, and the shift may be infinite
      a.excess += -shift * a.mass;
      if (weighted) {
        a.offset -= shift;
      } else {
        const double factor = __builtin_exp2(-shift);
        a.sum *= factor;
        multiply(a, v, D, factor);
      }
      break;
    case kSmall: {
      const double factor = __builtin_exp2(-shift);
      a.sum *= factor;
      a.sum += a.seen * __builtin_expm1(-shift * kLn2);
      multiply(a, v, D, factor);
      break;
    }
    case kHot:
      a.sum += -drop * a.seen;
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

// Makes the sums relative to a larger 2^offset (weighted kNormal and kCold only).
template <typename T>
static void raise_offset(Sums<T>& a, Vectors& v, int64_t D, double offset) {
  if (!(offset > a.offset)) return;
  const double factor = a.mass == 0 ? 0.0 : __builtin_exp2(a.offset - offset);
  a.offset = offset;
  a.sum *= factor;
  multiply(a, v, D, factor);
}

// a += b, in the order of the latents (a before b): the first of equal minima keeps the index.
template <typename T>
static void merge(const Query<T>& q, bool weighted, Sums<T>& a, Vectors& va, Sums<T>& b,
                  Vectors& vb, int64_t D) {
  if (b.least < a.least || (b.least == a.least && b.index < a.index)) a.index = b.index;
  lower_least(q, weighted, a, va, D, b.least < a.least ? b.least : a.least);
  lower_least(q, weighted, b, vb, D, a.least);
  raise_offset(a, va, D, b.offset);
  raise_offset(b, vb, D, a.offset);
  a.sum += b.sum;
  a.mass += b.mass;
  a.excess += b.excess;
  a.seen += b.seen;
  for (int64_t d = 0; d < D; ++d) {
    if (va.residual) va.residual[d] += vb.residual[d];
    if (va.stretch) va.stretch[d] += vb.stretch[d];
    if (va.mean) va.mean[d] += vb.mean[d];
  }
}

// A query to which a block does not matter: it has the weights alone.
template <typename T>
static void leave_out(Mode mode, double weight, Sums<T>& a) {
  a.seen += weight;
  if (mode == kSmall) a.sum += -weight;
}

// One block's sums, still in T.
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
