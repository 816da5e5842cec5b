// The weights of one row, from its log-weights l[N]: w = exp(l - max l) and log2 of w / sum w.
#pragma once

#include "loops.h"

LEBM_BEGIN_TARGET

// What a row of N numbers takes where loops read whole steps.
template <typename T>
LEBM_INLINE int64_t whole_steps(int64_t size) {
  return (size + kStep<T> - 1) / kStep<T> * kStep<T>;
}

// Equal weights have null pointers and a total of N.
template <typename T>
struct Weights {
  const T *log2_w, *w;  // -inf and 0 where a latent is dropped, and in the last step beyond N
  double total;         // of w
  bool valid;           // no NaN, no inf, and not all -inf
  bool complete;        // no latent is dropped
};

// `memory` has whole_steps(N) places twice.
template <typename T>
static Weights<T> weights_of(const T* l, int64_t size, T* memory) {
  if (!l) return {nullptr, nullptr, double(size), true, true};
  const int64_t whole = whole_steps<T>(size);
  T *log2_w = memory, *w = memory + whole;
  const Bounds<T> bounds = bounds_of(l, size);
  T peak = bounds.most;
  bool valid = true;
  if (!bounds.finite) {
    peak = -Exponent<T>::infinity;
    for (int64_t n = 0; n < size; ++n) {
      valid = valid && l[n] < Exponent<T>::infinity;
      if (l[n] > peak) peak = l[n];
    }
    valid = valid && is_finite(peak);
  }
  if (!valid) return {log2_w, w, 0, false, false};
  const double total = write_powers(l, size, peak, T(kLog2E), kLeastWeight<T>, w);
  const T log2_total = T(__builtin_log2(total)), lowest = T(-kMost<T>);
  for (int64_t n = 0; n < size; ++n) {
    log2_w[n] = (l[n] - peak) * T(kLog2E) - log2_total;
    // Only a latent that is dropped has -inf.
    if (log2_w[n] < lowest && l[n] > -Exponent<T>::infinity) log2_w[n] = lowest;
  }
  fill(log2_w + size, whole - size, -Exponent<T>::infinity);
  fill(w + size, whole - size, T(0));
  return {log2_w, w, total, true, bounds.finite};
}

LEBM_END_TARGET
