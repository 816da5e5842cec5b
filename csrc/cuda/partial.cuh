// Partial sums of a query over some of its latents, and how two of them become one.
//
// A partial sum is relative to a reference (m, a):
//
//   S = sum_n exp2(log2 w - c (E - m) + a),   c = beta log2(e),
//
// beside sums of the same terms times something. Fields, all double:
//
//   [0] m   [1] a   [2] S   [3...] further sums, then the largest sum of a chunk of latents;
//   with kSlopes [3] sum of p (E - m); with kEverything at the end
//   [-2] the least energy   [-1] its index, the first of equals
#pragma once

#include "task.cuh"

namespace lebm::cuda {

// How many sums there are for D dimensions held by a thread.
template <int kD, int kWants>
constexpr int kSums = kWants == kValue         ? 1
                      : kWants == kSlopeY      ? 1 + kD
                      : kWants == kSlopeYScale ? 1 + 2 * kD
                      : kWants == kSlopes      ? 2 + 2 * kD
                                               : 2 + 3 * kD;

// Where the largest sum of a chunk is.
template <int kD, int kWants>
constexpr int kLargestChunk = 2 + kSums<kD, kWants>;

template <int kD, int kWants>
constexpr int kFields = kLargestChunk<kD, kWants> + (kWants == kEverything ? 3 : 1);

// log2 of what the sums of reference (m, a) become multiplied by under (to_m, to_a). At c = inf
// those of a larger m are nothing.
__device__ __forceinline__ double shift_of(double c, double m, double a, double to_m, double to_a) {
  return (m == to_m ? 0.0 : c * (to_m - m)) + (to_a - a);
}

// into += from. The reference stays with the one that has the larger terms.
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
  const double shift = shift_of(c, from[0], from[1], into[0], into[1]);
  const bool keep = shift <= 0;
  const double by = shift == 0 ? 1.0 : exp2(keep ? shift : -shift);
  const double m = keep ? into[0] : from[0];
  if (kWantsEnergy<kWants>) {
    into[3] += (into[0] - m) * into[2];
    into[3] = keep ? into[3] + by * (from[3] + (from[0] - m) * from[2]) : by * into[3] + from[3];
  }
  into[kLargest] =
      keep ? fmax(into[kLargest], by * from[kLargest]) : fmax(by * into[kLargest], from[kLargest]);
  for (int i = 2; i < kLargest; ++i) {
    if (kWantsEnergy<kWants> && i == 3) continue;
    into[i] = keep ? into[i] + by * from[i] : by * into[i] + from[i];
  }
  if (!keep) into[1] = from[1];
  into[0] = m;
}

// Merges the partial sums of threads that share a query: `stride` threads apart, `count` of them (a
// power of two), into the first. `scratch` holds kFields kThreads doubles and is free before and
// after.
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
    task.partial[(i * task.plan.splits + split) * queries + query] = fields[i];
  }
}

template <typename T, int kCount>
__device__ void load_partial(const RowTask<T>& task, int64_t split, int64_t query,
                             double (&fields)[kCount]) {
  const int64_t queries = task.problem.B * task.problem.M;
  for (int i = 0; i < kCount; ++i) {
    fields[i] = task.partial[(i * task.plan.splits + split) * queries + query];
  }
}

}  // namespace lebm::cuda
