// sums[m] = sum_n exp2(-(y[m] - g[n])^2), and the total of all sums.
//
// y[queries], g[latents], sums[queries], partial[blocks], total[1]. One thread per query; the
// latents pass through shared memory tile by tile. The thread block that finishes last adds up the
// total from `partial`. *done counts the finished thread blocks, and is 0 before and after.
#pragma once

#include "device.cuh"

namespace pairs {

constexpr int kThreads = 96;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Returns in thread 0 the sum of all threads' values. `scratch` is free after the next barrier.
__device__ __forceinline__ float add_over_block(float value, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int delta = 16; delta > 0; delta /= 2) {
    value += __shfl_down_sync(kAllLanes, value, delta);
  }
  if (lane == 0) scratch[warp] = value;
  __syncthreads();  // the warps' sums are written
  if (threadIdx.x == 0) {
    for (int i = 1; i < kWarps; ++i) value += scratch[i];
  }
  return value;
}

__global__ void __launch_bounds__(kThreads)
    sums_kernel(const float* __restrict__ y, const float* __restrict__ g, int queries, int latents,
                float* __restrict__ sums, float* __restrict__ partial, unsigned* done,
                float* __restrict__ total) {
  LEBM_SHARED(float, tile, [kThreads]);
  LEBM_SHARED(float, scratch, [kWarps]);
  LEBM_SHARED(bool, last);
  const int m = blockIdx.x * kThreads + threadIdx.x;
  const float place = m < queries ? y[m] : 0.0f;
  float sum = 0;
  for (int first = 0; first < latents; first += kThreads) {
    const int n = first + int(threadIdx.x);
    if (n < latents) tile[threadIdx.x] = __ldg(g + n);
    __syncthreads();  // the tile is written
    const int count = min(kThreads, latents - first);
    for (int i = 0; i < count; ++i) {
      const float difference = place - tile[i];
      sum += exp2_approx(__fmul_rn(-difference, difference));
    }
    __syncthreads();  // the tile is read
  }
  if (m < queries) {
    sums[m] = sum;
  } else {
    sum = 0;
  }

  const float of_block = add_over_block(sum, scratch);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = of_block;
    __threadfence();  // another thread block may read it
    last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();  // `last` is known
  if (!last) return;
  float mine = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) mine += partial[i];
  mine = add_over_block(mine, scratch);
  if (threadIdx.x == 0) *total = mine;
}

inline int blocks(int queries) { return (queries + kThreads - 1) / kThreads; }

inline void launch_sums(const float* y, const float* g, int queries, int latents, float* sums,
                        float* partial, unsigned* done, float* total, cudaStream_t stream) {
  LEBM_LAUNCH(sums_kernel, blocks(queries), kThreads, 0, stream, y, g, queries, latents, sums,
              partial, done, total);
}

}  // namespace pairs
