// Sums over the lanes of a warp, of several numbers at once.
#pragma once

#include "device.cuh"

namespace lebm::cuda {

// Combines each of a lane's kCount numbers over the lanes that differ in the bits from kMask down
// to kLowest. In each step a lane gives half of its numbers away and keeps the other half, as long
// as it has two. Of m numbers that remain, lane l has those from (l / kLowest) m on, if kCount is
// enough for all steps; with fewer numbers neighbouring lanes have the same.
template <int kLowest, int kMask, int kCount, typename V, int kSize, typename Combine>
__device__ __forceinline__ void fold_from(V (&numbers)[kSize], Combine combine) {
  if constexpr (kMask >= kLowest) {
    constexpr int kLeft = kCount > 1 ? kCount / 2 : 1;
    const bool upper = threadIdx.x & kMask;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const V low = numbers[i], high = numbers[kCount - kLeft + i];
      const V given = upper ? low : high, kept = upper ? high : low;
      numbers[i] = combine(kept, __shfl_xor_sync(0xffffffffu, given, kMask));
    }
    fold_from<kLowest, kMask / 2, kLeft>(numbers, combine);
  }
}

template <int kLowest, typename V, int kCount, typename Combine>
__device__ __forceinline__ void fold(V (&numbers)[kCount], Combine combine) {
  fold_from<kLowest, 16, kCount>(numbers, combine);
}

template <int kLowest, typename V, int kCount>
__device__ __forceinline__ void fold_sums(V (&numbers)[kCount]) {
  fold<kLowest>(numbers, [](V a, V b) { return a + b; });
}

}  // namespace lebm::cuda
