// Small things that all kernels use.
#pragma once

#include "parallel.h"
#include "scratch.h"
#include "target.h"

LEBM_BEGIN_TARGET

LEBM_INLINE bool is_finite(double x) { return x - x == 0; }

struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

template <typename E, E kValue>
struct Constant {
  static constexpr E value = kValue;
};

template <typename T>
static void fill(T* x, int64_t count, T value) {
  for (int64_t i = 0; x && i < count; ++i) x[i] = value;
}

template <typename T>
static void copy(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// A sum over many blocks, in double. A sum of doubles also keeps its rounding errors: if the terms
// are nearly equal, the errors have the same sign and add up.
template <typename T>
struct Total {
  double value;

  operator double() const { return value; }
  void operator+=(double x) { value += x; }
  void operator*=(double factor) { value *= factor; }
};

template <>
struct Total<double> {
  double value, lost;

  // The error beside an infinite sum is NaN.
  operator double() const { return value - value == 0 ? value + lost : value; }
  void operator+=(double x) {
    const double sum_ = value + x, added = sum_ - value;
    lost += (value - (sum_ - added)) + (x - added);
    value = sum_;
  }
  void operator+=(const Total& x) {
    *this += x.value;
    lost += x.lost;
  }
  void operator*=(double factor) {
    value *= factor;
    lost *= factor;
  }
};

LEBM_INLINE size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// body(i) for i in [0, count), on the threads of `parallel`.
template <typename F>
static void for_each(const Parallel& parallel, int64_t count, const F& body) {
  parallel.run(
      count, [](void* f, int64_t i) { (*static_cast<const F*>(f))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(b, scratch of `bytes`, one thread) for every grid, divided among the threads.
template <typename F>
static void divide_grids(int64_t B, size_t bytes, const Parallel& parallel, const F& body) {
  const Parallel serial = on_this_thread();
  const int64_t num_ranges = 4 * parallel.threads < B ? 4 * parallel.threads : B;
  for_each(parallel, num_ranges, [&](int64_t range) {
    Scratch scratch(bytes);
    for (int64_t b = B * range / num_ranges; b < B * (range + 1) / num_ranges; ++b)
      body(b, scratch.get(), serial);
  });
}

// body(b, scratch of `bytes`, threads) for every grid. Many grids are divided among the threads;
// few are taken one after the other, each with all threads.
template <typename F>
static void each_grid(int64_t B, size_t bytes, const Parallel& parallel, const F& body) {
  if (B >= 2 * parallel.threads && parallel.threads > 1)
    return divide_grids(B, bytes, parallel, body);
  Scratch scratch(bytes);
  for (int64_t b = 0; b < B; ++b) body(b, scratch.get(), parallel);
}

LEBM_END_TARGET
