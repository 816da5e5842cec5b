// Soft minima and their distributions for all rows of E[A, N, C], over n; see row.h.
//
// Where C is 1, rows are read and written where they lie. Otherwise some neighbouring columns at a
// time are transposed to rows and back.
#pragma once

#include "../kernels.h"
#include "row.h"

LEBM_BEGIN_TARGET

// The columns of one task: those of a cache line; short ones, of up to 8 lines in less than 128
// KiB, as long as every thread has two tasks.
template <typename T>
constexpr int64_t kColumns = 64 / sizeof(T);
template <typename T>
static int64_t columns_of_task(const SoftProblem<T>& p, int64_t threads) {
  int64_t columns = kColumns<T>;
  auto leaves_tasks = [&] { return p.A * p.C >= 2 * columns * 2 * threads; };
  while (columns < 8 * kColumns<T> && columns * p.N * int64_t(sizeof(T)) < 128 << 10 &&
         leaves_tasks())
    columns *= 2;
  return p.C < columns ? p.C : columns;
}

// Some columns c, c + 1, ... of x[a], as rows.
template <typename T>
struct Columns {
  int64_t N, C, a, c, width;
  int64_t pitch;  // from row to row in memory

  int64_t first() const { return a * N * C + c; }

  // The rows of x: in place, or copied to `memory`.
  const T* gathered(const T* x, T* memory) const {
    if (C == 1) return x + first();
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < width; ++k) memory[k * pitch + n] = x[first() + n * C + k];
    return memory;
  }
  T* target(T* x, T* memory) const { return C == 1 ? x + first() : memory; }
  void scatter(const T* memory, T* x) const {
    if (C == 1) return;
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < width; ++k) x[first() + n * C + k] = memory[k * pitch + n];
  }
};

// Calls body(columns, transposed, extra numbers, parallel) for a few columns at a time. The memory
// has room for `copies` transposed copies of these columns, and for `extra` numbers.
template <typename T, typename F>
static void each_columns(const SoftProblem<T>& p, int64_t copies, int64_t extra,
                         const Parallel& parallel, const F& body) {
  const int64_t width = columns_of_task(p, parallel.threads), tasks = (p.C + width - 1) / width;
  // Not a power of two: rows would compete for the same places of a cache.
  const int64_t pitch = whole_steps<T>(p.N) + kColumns<T>;
  const int64_t room = p.C == 1 ? 0 : copies * width * pitch;
  auto task = [&](int64_t i, void* memory, const Parallel& threads) {
    const int64_t c = i % tasks * width, count = p.C - c < width ? p.C - c : width;
    T* numbers = static_cast<T*>(memory);
    body(Columns<T>{p.N, p.C, i / tasks, c, count, pitch}, numbers, numbers + room, threads);
  };
  const size_t bytes = sizeof(T) * (room + extra);
  // Rows that are not summed in pieces leave other threads idle unless they are divided among them.
  if (p.N < 2 * kPiece)
    divide_grids(p.A * tasks, bytes, parallel, task);
  else
    each_grid(p.A * tasks, bytes, parallel, task);
}

// body(row, r, out) for each of the A C rows, where `out` is the row's place in an array like E.
template <typename T, typename F>
static void each_row(const SoftProblem<T>& p, T* out, const Parallel& parallel, const F& body) {
  const int64_t whole = whole_steps<T>(p.N);
  Scratch shared(p.log_weight_stride ? 0 : sizeof(T) * 2 * whole);
  const Weights<T> weights =
      weights_of(p.log_weight_stride ? nullptr : p.log_weight, p.N, static_cast<T*>(shared.get()));
  each_columns(p, 2, 4 * whole, parallel,
               [&](const Columns<T>& columns, T* copies, T* extra, const Parallel& threads) {
                 T* other = copies + columns.width * columns.pitch;
                 const T* energy = columns.gathered(p.energy, copies);
                 T* target = out ? columns.target(out, other) : nullptr;
                 for (int64_t k = 0; k < columns.width; ++k) {
                   const int64_t r = columns.a * p.C + columns.c + k;
                   const T* l = p.log_weight + r * p.log_weight_stride;
                   const Row<T> row{
                       energy + k * columns.pitch,
                       p.N,
                       double(p.beta[r * p.beta_stride]),
                       p.largest,
                       p.log_weight_stride ? weights_of(l, p.N, extra + 2 * whole) : weights,
                       extra,
                       &threads};
                   body(row, r, target ? target + k * columns.pitch : nullptr);
                 }
                 if (out) columns.scatter(other, out);
               });
}

template <typename T>
static void softmin(const SoftProblem<T>& p, T* value, const Parallel& parallel) {
  each_row(p, static_cast<T*>(nullptr), parallel,
           [&](const Row<T>& row, int64_t r, T*) { value[r] = softmin_of(row); });
}

template <typename T>
static void softargmin(const SoftProblem<T>& p, const T* factor, T* out, const Parallel& parallel) {
  each_row(p, out, parallel, [&](const Row<T>& row, int64_t r, T* place) {
    softargmin_of(row, factor ? factor[r] : T(1), place);
  });
}

// dp/dE, from p in place of the energies: grad_energy = -beta p (grad_p - sum_n p grad_p). At beta
// = inf, p changes with E only where a tie begins or ends.
template <typename T>
static void softargmin_slopes(const SoftProblem<T>& p, const T* grad_p, T* grad_energy,
                              const Parallel& parallel) {
  each_columns(p, 3, 0, parallel,
               [&](const Columns<T>& columns, T* copies, T*, const Parallel& threads) {
                 const int64_t copy = columns.width * columns.pitch;
                 const T* shares = columns.gathered(p.energy, copies);
                 const T* grad = columns.gathered(grad_p, copies + copy);
                 T* out = columns.target(grad_energy, copies + 2 * copy);
                 for (int64_t k = 0; k < columns.width; ++k) {
                   const int64_t r = columns.a * p.C + columns.c + k, at = k * columns.pitch;
                   Row<T> row{};
                   row.size = p.N;
                   row.parallel = &threads;
                   const double mean = total_over_pieces(row, [&](int64_t begin, int64_t size) {
                     return sum_of_products(shares + at + begin, grad + at + begin, size);
                   });
                   const T beta = p.beta[r * p.beta_stride];
                   const T by = beta == Exponent<T>::infinity ? T(0) : p.largest ? beta : -beta;
                   each_piece(row, [&](int64_t begin, int64_t size) {
                     const int64_t first = at + begin;
                     write_slopes(shares + first, grad + first, size, T(mean), by, out + first);
                   });
                 }
                 columns.scatter(copies + 2 * copy, grad_energy);
               });
}

template <typename T>
constexpr SoftKernel<T> kSoftKernel = {softmin<T>, softargmin<T>, softargmin_slopes<T>};

LEBM_END_TARGET
