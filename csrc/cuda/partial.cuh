// The partial sums of a query over some of its latents, and the merge of two of them.
//
// Partial sums are about a shift (m, a), where c = beta log2(e):
//
//   S = sum_n p~,   p~ = exp2(log2 w - c (E - m) + a)
//
// S is the mass; the other sums have the same terms p~ times a factor. The fields, all double:
//
//   [0] m   [1] a   [2] S   [3...] the other sums, then the largest mass of a chunk of latents
//   with kSlopes and more        [3] is the sum of p~ (E - m)
//   with kEverything, at the end [-2] the least energy, [-1] its index, the first of equals
#pragma once

#include <cmath>
#include <cstdint>

#include "device.cuh"
#include "row_task.cuh"
#include "splits.cuh"

namespace lebm::cuda {

// The number of sums, at D dimensions in a thread's registers.
template <int kD, int kWants>
constexpr int kSums = kWants == kValue         ? 1
                      : kWants == kSlopeY      ? 1 + kD
                      : kWants == kSlopeYScale ? 1 + 2 * kD
                      : kWants == kSlopes      ? 2 + 2 * kD
                                               : 2 + 3 * kD;

// The field of the largest mass of a chunk.
template <int kD, int kWants>
constexpr int kLargestChunk = 2 + kSums<kD, kWants>;

template <int kD, int kWants>
constexpr int kFields = kLargestChunk<kD, kWants> + (kWants == kEverything ? 3 : 1);

// log2 of the factor that takes sums about the shift (m, a) to the shift (to_m, to_a). At c = inf
// the factor for a larger m is 0.
__device__ __forceinline__ double log2_rescale(double c, double m, double a, double to_m,
                                               double to_a) {
  return (m == to_m ? 0.0 : c * (to_m - m)) + (to_a - a);
}

// into += from. The merged sums keep the shift under which no term is multiplied by more than 1.
template <int kD, int kWants>
__device__ void merge(double c, double (&into)[kFields<kD, kWants>],
                      const double (&from)[kFields<kD, kWants>]) {
  constexpr int kLast = kFields<kD, kWants> - 1, kLargest = kLargestChunk<kD, kWants>;
  if (kWants == kEverything) {
    const double least = from[kLast - 1], index = from[kLast];
    if (least < into[kLast - 1] || (least == into[kLast - 1] && index < into[kLast])) {
      into[kLast - 1] = least;
      into[kLast] = index;
    }
  }
  if (from[2] == 0) return;
  if (into[2] == 0) {
    for (int i = 0; i <= kLargest; ++i) into[i] = from[i];
    return;
  }
  const double exponent = log2_rescale(c, from[0], from[1], into[0], into[1]);
  const bool keep = exponent <= 0;
  const double factor = exponent == 0 ? 1.0 : exp2(keep ? exponent : -exponent);
  const double m = keep ? into[0] : from[0];
  if (kWantsEnergy<kWants>) {
    into[3] += (into[0] - m) * into[2];
    into[3] =
        keep ? into[3] + factor * (from[3] + (from[0] - m) * from[2]) : factor * into[3] + from[3];
  }
  into[kLargest] = keep ? fmax(into[kLargest], factor * from[kLargest])
                        : fmax(factor * into[kLargest], from[kLargest]);
  for (int i = 2; i < kLargest; ++i) {
    if (kWantsEnergy<kWants> && i == 3) continue;
    into[i] = keep ? into[i] + factor * from[i] : factor * into[i] + from[i];
  }
  if (!keep) into[1] = from[1];
  into[0] = m;
}

// Merges the partial sums of the `count` threads (a power of two) of each query, `stride` threads
// apart, into those of the first. `scratch` has room for kFields * kThreads doubles, and is free
// before and after.
template <int kD, int kWants>
__device__ void merge_threads(double c, int stride, int count, double* scratch,
                              double (&fields)[kFields<kD, kWants>]) {
  constexpr int kCount = kFields<kD, kWants>;
  for (int half = count / 2; half > 0; half /= 2) {
    for (int i = 0; i < kCount; ++i) scratch[i * kThreads + threadIdx.x] = fields[i];
    __syncthreads();  // all partial sums are written
    if (int(threadIdx.x) < half * stride) {
      double other[kCount];
      for (int i = 0; i < kCount; ++i) {
        other[i] = scratch[i * kThreads + threadIdx.x + half * stride];
      }
      merge<kD, kWants>(c, fields, other);
    }
    __syncthreads();  // all partial sums are read
  }
}

template <typename T, int kCount>
__device__ void store_partial(const RowTask<T>& task, int64_t split, int64_t query,
                              const double (&fields)[kCount]) {
  const int64_t queries = task.problem.B * task.problem.M;
  for (int i = 0; i < kCount; ++i) {
    task.partial[(i * task.plan.num_splits + split) * queries + query] = fields[i];
  }
}

template <typename T, int kCount>
__device__ void load_partial(const RowTask<T>& task, int64_t split, int64_t query,
                             double (&fields)[kCount]) {
  const int64_t queries = task.problem.B * task.problem.M;
  for (int i = 0; i < kCount; ++i) {
    fields[i] = task.partial[(i * task.plan.num_splits + split) * queries + query];
  }
}

}  // namespace lebm::cuda
