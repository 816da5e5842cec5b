// The normaliser of the log-weights of each grid, before anything else:
//
//   normaliser[b] = (max_n l, log sum_n exp(l - max)),   log_weight l [B, N]
//
// Relative to the largest, which takes a common offset away without rounding.
#pragma once

#include "task.cuh"

namespace lebm::cuda {

constexpr int kNormaliserBlocks = 64;  // of a grid, at most

// (max, sum exp(l - max)) and the same of others, in a fixed order.
__device__ __forceinline__ void add_weights(double& most, double& sum, double other_most,
                                            double other_sum) {
  if (other_sum == 0) return;
  // NaN shows in the sum, whichever is larger.
  if (other_most > most) {
    sum = sum * exp(most - other_most) + other_sum;
    most = other_most;
  } else {
    sum += other_sum * (other_most == most ? 1.0 : exp(other_most - most));
  }
}

__device__ __forceinline__ void add_weights_over_block(double& most, double& sum, double* scratch) {
  for (int half = kThreads / 2; half > 0; half /= 2) {
    scratch[threadIdx.x] = most;
    scratch[kThreads + threadIdx.x] = sum;
    __syncthreads();  // all are written
    if (int(threadIdx.x) < half) {
      add_weights(most, sum, scratch[threadIdx.x + half], scratch[kThreads + threadIdx.x + half]);
    }
    __syncthreads();  // all are read
  }
}

// partial [B, blocks, 2]; with one block a grid, the normaliser itself.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_weights_kernel(const View<T> log_weight, int64_t N, int blocks, double* partial) {
  LEBM_SHARED(double, scratch, [2 * kThreads]);
  const int64_t b = blockIdx.x / blocks, block = blockIdx.x % blocks;
  double most = -double(INFINITY), sum = 0;
  for (int64_t n = block * kThreads + threadIdx.x; n < N; n += int64_t(blocks) * kThreads) {
    const double l = double(load(log_weight, b, n));
    if (l != -double(INFINITY)) add_weights(most, sum, l, l == l ? 1.0 : l);
  }
  add_weights_over_block(most, sum, scratch);
  if (threadIdx.x == 0) {
    partial[2 * blockIdx.x] = most;
    partial[2 * blockIdx.x + 1] = blocks == 1 ? log(sum) : sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const double* partial, int blocks, double* normaliser) {
  LEBM_SHARED(double, scratch, [2 * kThreads]);
  double most = -double(INFINITY), sum = 0;
  if (int(threadIdx.x) < blocks) {
    const double* from = partial + 2 * (int64_t(blockIdx.x) * blocks + threadIdx.x);
    add_weights(most, sum, from[0], from[1]);
  }
  add_weights_over_block(most, sum, scratch);
  if (threadIdx.x == 0) {
    normaliser[2 * blockIdx.x] = most;
    normaliser[2 * blockIdx.x + 1] = log(sum);
  }
}

template <typename T>
int normaliser_blocks(const Problem<T>& p) {
  return int(min(int64_t(kNormaliserBlocks), (p.N + 4 * kThreads - 1) / (4 * kThreads)));
}

// Doubles of workspace: the normaliser, then what it is made of.
template <typename T>
int64_t normaliser_workspace(const Problem<T>& p) {
  return p.log_weight.data ? 2 * p.B * (1 + normaliser_blocks(p)) : 0;
}

// Fills the workspace, and returns the normaliser or null.
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
