// The normaliser of the log-weights of each grid, computed before the row and the column pass:
//
//   normaliser[b] = (max_n l, log sum_n exp(l - max)),   log_weight l [B, N], normaliser [B, 2]
//
// Subtracting the maximum first removes an offset common to all log-weights without rounding.
#pragma once

#include <cmath>
#include <cstdint>

#include "../problem.h"
#include "device.cuh"
#include "load.cuh"
#include "splits.cuh"

namespace lebm::cuda {

constexpr int kNormaliserBlocks = 64;  // thread blocks per grid of latents, at most

// Merges (max, sum exp(l - max)) of other latents into this one.
__device__ __forceinline__ void merge_weights(double& largest, double& sum, double other_largest,
                                              double other_sum) {
  if (other_sum == 0) return;
  // NaN reaches the sum in either branch.
  if (other_largest > largest) {
    sum = sum * exp(largest - other_largest) + other_sum;
    largest = other_largest;
  } else {
    sum += other_sum * (other_largest == largest ? 1.0 : exp(other_largest - largest));
  }
}

// Merges those of all threads of the thread block into thread 0's, in a fixed order.
__device__ __forceinline__ void merge_weights_of_block(double& largest, double& sum,
                                                       double* scratch) {
  for (int half = kThreads / 2; half > 0; half /= 2) {
    scratch[threadIdx.x] = largest;
    scratch[kThreads + threadIdx.x] = sum;
    __syncthreads();  // all are written
    if (int(threadIdx.x) < half) {
      merge_weights(largest, sum, scratch[threadIdx.x + half],
                    scratch[kThreads + threadIdx.x + half]);
    }
    __syncthreads();  // all are read
  }
}

// Writes partial [B, blocks, 2] by `blocks` thread blocks per grid; with blocks == 1 it writes the
// normaliser itself.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_weights_kernel(const View<T> log_weight, int64_t N, int blocks, double* partial) {
  LEBM_SHARED(double, scratch, [2 * kThreads]);
  const int64_t b = blockIdx.x / blocks, block = blockIdx.x % blocks;
  double largest = -double(INFINITY), sum = 0;
  for (int64_t n = block * kThreads + threadIdx.x; n < N; n += int64_t(blocks) * kThreads) {
    const double l = double(load(log_weight, b, n));
    if (l != -double(INFINITY)) merge_weights(largest, sum, l, l == l ? 1.0 : l);
  }
  merge_weights_of_block(largest, sum, scratch);
  if (threadIdx.x == 0) {
    partial[2 * blockIdx.x] = largest;
    partial[2 * blockIdx.x + 1] = blocks == 1 ? log(sum) : sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const double* partial, int blocks, double* normaliser) {
  LEBM_SHARED(double, scratch, [2 * kThreads]);
  double largest = -double(INFINITY), sum = 0;
  if (int(threadIdx.x) < blocks) {
    const double* from = partial + 2 * (int64_t(blockIdx.x) * blocks + threadIdx.x);
    merge_weights(largest, sum, from[0], from[1]);
  }
  merge_weights_of_block(largest, sum, scratch);
  if (threadIdx.x == 0) {
    normaliser[2 * blockIdx.x] = largest;
    normaliser[2 * blockIdx.x + 1] = log(sum);
  }
}

template <typename T>
int normaliser_blocks(const Problem<T>& p) {
  return int(min(int64_t(kNormaliserBlocks), (p.N + 4 * kThreads - 1) / (4 * kThreads)));
}

// The number of doubles of workspace: the normaliser, then the partial results.
template <typename T>
int64_t normaliser_workspace(const Problem<T>& p) {
  return p.log_weight.data ? 2 * p.B * (1 + normaliser_blocks(p)) : 0;
}

// Returns the normaliser, at the start of the workspace; null without log-weights.
template <typename T>
const double* launch_normalise(const Problem<T>& p, double* workspace, cudaStream_t stream) {
  if (!p.log_weight.data) return nullptr;
  const int blocks = normaliser_blocks(p);
  double* const partial = blocks == 1 ? workspace : workspace + 2 * p.B;
  LEBM_LAUNCH(sum_weights_kernel<T>, unsigned(p.B * blocks), kThreads, 0, stream, p.log_weight, p.N,
              blocks, partial);
  if (blocks > 1) {
    LEBM_LAUNCH(normalise_kernel<T>, unsigned(p.B), kThreads, 0, stream, partial, blocks,
                workspace);
  }
  return workspace;
}

}  // namespace lebm::cuda
