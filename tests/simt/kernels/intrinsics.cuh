// Calls each intrinsic that exchanges data once: out[k, thread] is the result of the k-th.
#pragma once

#include "device.cuh"

namespace intrinsics {

constexpr unsigned kAllLanes = 0xffffffff;
constexpr unsigned kLowLanes = 0x000000ff;

// in[threads], out[4, threads]
template <typename T>
__global__ void shuffles_kernel(const T* in, T* out, int width) {
  const int threads = blockDim.x, i = threadIdx.x;
  const T value = in[i];
  out[0 * threads + i] = __shfl_sync(kAllLanes, value, 5, width);
  out[1 * threads + i] = __shfl_up_sync(kAllLanes, value, 3, width);
  out[2 * threads + i] = __shfl_down_sync(kAllLanes, value, 3, width);
  out[3 * threads + i] = __shfl_xor_sync(kAllLanes, value, 6, width);
}

// in[threads], out[14, threads]
__global__ void votes_kernel(const int* in, int* out) {
  const int threads = blockDim.x, i = threadIdx.x;
  const int value = in[i];
  const unsigned bits = value;
  out[0 * threads + i] = int(__ballot_sync(kAllLanes, value > 0));
  out[1 * threads + i] = __any_sync(kAllLanes, value > 0);
  out[2 * threads + i] = __all_sync(kAllLanes, value > 0);
  out[3 * threads + i] = __syncthreads_count(value > 0);
  out[4 * threads + i] = __syncthreads_or(value > 0);
  out[5 * threads + i] = __syncthreads_and(value > 0);
  out[6 * threads + i] = __reduce_add_sync(kAllLanes, value);
  out[7 * threads + i] = __reduce_min_sync(kAllLanes, value);
  out[8 * threads + i] = __reduce_max_sync(kAllLanes, value);
  out[9 * threads + i] = int(__reduce_and_sync(kAllLanes, bits));
  out[10 * threads + i] = int(__reduce_or_sync(kAllLanes, bits));
  out[11 * threads + i] = int(__reduce_xor_sync(kAllLanes, bits));
  // The lanes take two branches and meet again.
  int own = 0;
  if (i % 32 < 8) {
    own = int(__ballot_sync(kLowLanes, value > 0));
  } else {
    own = __reduce_add_sync(~kLowLanes, value);
  }
  out[12 * threads + i] = own;
  out[13 * threads + i] = __shfl_xor_sync(kAllLanes, own, 31);
}

// in[blocks, threads], out[8]; the last output depends on the order of the threads
__global__ void atomics_kernel(const int* in, int* out, unsigned* count, unsigned long long* wide) {
  const int value = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(out + 0, value);
  atomicMin(out + 1, value);
  atomicMax(out + 2, value);
  atomicAnd(out + 3, value);
  atomicOr(out + 4, value);
  atomicXor(out + 5, value);
  atomicCAS(out + 6, 7, value);  // nothing is 7
  atomicExch(out + 7, value);
  atomicInc(count, 99);
  atomicAdd(wide, 1ull << 33);
}

template <typename T>
void launch_shuffles(const T* in, T* out, int threads, int width, cudaStream_t stream) {
  LEBM_LAUNCH(shuffles_kernel<T>, 1, threads, 0, stream, in, out, width);
}

inline void launch_votes(const int* in, int* out, int threads, cudaStream_t stream) {
  LEBM_LAUNCH(votes_kernel, 1, threads, 0, stream, in, out);
}

inline void launch_atomics(const int* in, int* out, unsigned* count, unsigned long long* wide,
                           int blocks, int threads, cudaStream_t stream) {
  LEBM_LAUNCH(atomics_kernel, blocks, threads, 0, stream, in, out, count, wide);
}

}  // namespace intrinsics
