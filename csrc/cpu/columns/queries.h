// The queries of the column pass, sorted by regime: y, s [M][D] and a ColumnQuery each.
#pragma once

#include "../../problem.h"
#include "../grid/pack.h"
#include "../regime.h"
#include "task.h"

LEBM_BEGIN_TARGET

template <typename T>
struct ColumnMemory {
  ColumnQuery<T>* queries;
  T *y, *s;
  unsigned char* regime;
  BlockFlags* flags;
  void *packed, *order_of_latents;

  static size_t bytes(const Problem<T>& p) { return carve(nullptr, p, nullptr); }
  ColumnMemory(void* memory, const Problem<T>& p) { carve(static_cast<char*>(memory), p, this); }

 private:
  // Energies are taken kGroup rows at a time: rows past the last may be read.
  static size_t carve(char* memory, const Problem<T>& p, ColumnMemory* out) {
    const size_t rows = p.M + kGroup;
    const size_t sizes[] = {sizeof(ColumnQuery<T>) * rows,
                            sizeof(T) * rows * p.D,
                            sizeof(T) * rows * p.D,
                            rows,
                            sizeof(BlockFlags) * num_blocks(p),
                            grid_bytes(p, streams(p)),
                            sorts(p) ? order_bytes(p.N) : 0};
    size_t at[8] = {0};
    for (int i = 0; i < 7; ++i) at[i + 1] = at[i] + padded(sizes[i]);
    if (out) {
      out->queries = reinterpret_cast<ColumnQuery<T>*>(memory + at[0]);
      out->y = reinterpret_cast<T*>(memory + at[1]);
      out->s = reinterpret_cast<T*>(memory + at[2]);
      out->regime = reinterpret_cast<unsigned char*>(memory + at[3]);
      out->flags = reinterpret_cast<BlockFlags*>(memory + at[4]);
      out->packed = memory + at[5];
      out->order_of_latents = memory + at[6];
    }
    return at[7];
  }
};

// The row pass has L = 0 and a gap for a hot query. L rounds to 0 without a gap where one latent
// has nearly all of the weight, or all energies are equal.
template <typename T>
static Regime regime_of(double beta, double L, double gap, bool wants_l) {
  if (is_cold<T>(beta)) return kCold;
  if (!wants_l) return kWarm;
  if (beta == 0 || (L == 0 && (gap != 0 || !is_finite(T(1 / beta))))) return kHot;
  return L > kSmallL ? kSmall : kWarm;
}

// The power of two of the largest finite |G|. In its units products of G and p are normal numbers,
// whatever the size of G: `mean()` of a million queries makes it 1e-6.
template <typename T>
static double unit_of_gradients(const T* grad, int64_t count) {
  T largest = 0;
  for (int64_t m = 0; m < count; ++m) {
    const T size = grad[m] < 0 ? -grad[m] : grad[m];
    if (size > largest && is_finite(size)) largest = size;
  }
  if (largest == 0) return 1;
  const int exponent = __builtin_ilogb(double(largest));
  return __builtin_ldexp(1.0, exponent < -1000 ? -1000 : exponent);
}

// Sorts the queries that have a gradient by regime and fills task.queries, y and s, with G in units
// of `unit`. Returns sum G / beta over the warm ones, whose grad_l still lacks w times that sum.
template <typename T>
static double sort_queries(const Problem<T>& p, const ColumnArguments<T>& arguments, int64_t b,
                           const Grid<T>& grid, ColumnMemory<T>& memory, ColumnTask<T>& task,
                           int64_t* ends, double unit, bool& poisoned) {
  const T* grad = arguments.grad + b * p.M;
  const double* state = arguments.state + kStateSize * b * p.M;
  int64_t count[kRegimes] = {0};
  for (int64_t m = 0; m < p.M; ++m) {
    memory.regime[m] = kRegimes;
    if (grad[m] == 0) continue;
    const double* own = state + kStateSize * m;
    poisoned |= !is_finite(own[kStateShift]) || !is_finite(own[kStateLogNormaliser]);
    const double beta = *p.beta.at(b, m);
    memory.regime[m] = regime_of<T>(beta, own[kStateLogNormaliser], own[kStateGap], task.wants_l);
    ++count[memory.regime[m]];
  }
  ends[0] = 0;
  for (int k = 0; k < kRegimes; ++k) ends[k + 1] = ends[k] + count[k];
  int64_t next[kRegimes];
  for (int k = 0; k < kRegimes; ++k) next[k] = ends[k];
  double pulled = 0;
  for (int64_t m = 0; m < p.M; ++m) {
    if (memory.regime[m] == kRegimes) continue;
    const int64_t at = next[memory.regime[m]]++;
    for (int64_t d = 0; d < p.D; ++d) {
      memory.y[at * p.D + d] = p.y.at(b, m)[d * p.y.stride[2]];
      memory.s[at * p.D + d] = p.scale.data ? p.scale.at(b, m)[d * p.scale.stride[2]] : T(1);
    }
    const double beta = *p.beta.at(b, m), G = double(grad[m]) / unit;
    const double* own = state + kStateSize * m;
    const double bits = (own[kStateLogNormaliser] + __builtin_log(grid.total)) * kLog2E;
    double log2_mass = __builtin_rint(bits), rest = __builtin_exp2(log2_mass - bits);
    if (is_cold<T>(beta) && grid.weighted) {
      log2_mass = __builtin_rint(bits - own[kStateRest]);
      rest = __builtin_exp2(-own[kStateRest]);
    }
    ColumnQuery<T>& q = memory.queries[at];
    q = {T(own[kStateShift]), T(beta * kLog2E), T(log2_mass), T(G * rest), T(own[kStateGap]), T(0)};
    switch (memory.regime[m]) {
      case kWarm:
        q.pull = T(-G / beta * rest);
        pulled += G / beta;
        break;
      case kSmall:
        q.grad = T(G / grid.total);
        q.pull = T(-G / beta);
        break;
      case kHot:
        q.grad = T(G / grid.total);
        q.pull = T(G);
        break;
      default:
        break;
    }
  }
  const int64_t used = ends[kRegimes];
  fill(memory.y + used * p.D, kGroup * p.D, T(0));
  fill(memory.s + used * p.D, kGroup * p.D, T(0));
  return pulled;
}

LEBM_END_TARGET
