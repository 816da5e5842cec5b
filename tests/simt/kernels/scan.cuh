// out[i] = in[0] + ... + in[i], by one thread block, tile by tile.
//
// in[count], out[count] are integers; sums wrap around. A thread adds two neighbours, its warp
// scans the pairs by shuffles, and the first warp scans the sums of the warps in shared memory.
#pragma once

#include "device.cuh"

namespace scan {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 2 * kThreads;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr unsigned kWarpsLanes = (1u << kWarps) - 1;  // a lane for each warp

__global__ void scan_kernel(const int* __restrict__ in, int* __restrict__ out, int count) {
  LEBM_DYNAMIC_SHARED(int, ends);  // [kWarps]: the sum of each warp, then the sum up to its end
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before_tile = 0;
  for (int first = 0; first < count; first += kTile) {
    const int i = first + 2 * int(threadIdx.x);
    int2 pair = make_int2(0, 0);
    if (i + 1 < count) {
      pair = *reinterpret_cast<const int2*>(in + i);
    } else if (i < count) {
      pair.x = in[i];
    }
    int sum = pair.x + pair.y;
    for (int delta = 1; delta < 32; delta *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane >= delta) sum += other;
    }
    if (lane == 31) ends[warp] = sum;
    __syncthreads();  // the sums of the warps are written
    if (threadIdx.x < kWarps) {
      for (int delta = 1; delta < kWarps; delta *= 2) {
        const int other = lane >= delta ? ends[lane - delta] : 0;
        __syncwarp(kWarpsLanes);  // the sums are read
        ends[lane] += other;
        __syncwarp(kWarpsLanes);  // the sums are written
      }
    }
    __syncthreads();  // the warps' ends are written
    const int before = before_tile + (warp > 0 ? ends[warp - 1] : 0) + sum - pair.x - pair.y;
    if (i < count) out[i] = before + pair.x;
    if (i + 1 < count) out[i + 1] = before + pair.x + pair.y;
    before_tile += ends[kWarps - 1];
    __syncthreads();  // the ends are read
  }
}

inline void launch(const int* in, int* out, int count, cudaStream_t stream) {
  LEBM_LAUNCH(scan_kernel, 1, kThreads, kWarps * sizeof(int), stream, in, out, count);
}

}  // namespace scan
