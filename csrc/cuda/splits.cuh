// How the queries and latents of a launch are divided over threads and thread blocks.
//
// A pass reduces over one side (the row pass over latents, the column pass over queries). Where the
// other side is too small to keep the GPU busy, threads of a block divide the reduced side, and
// then thread blocks do: each reduces one split of it, and the splits are merged afterwards.
#pragma once

#include <climits>
#include <cstdint>

#include "device.cuh"

namespace lebm::cuda {

constexpr int kThreads = 128;  // per thread block

// From this many queries or latents on, a thread takes several: all threads of a thread block then
// have some.
constexpr int kMany = 4 * kThreads;

// A thread sums this many latents or queries before it adds their sum to a larger one.
constexpr int kChunk = 32;

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The threads of a thread block that `count` queries or latents get: 1, 2, 8, 32 or all. The steps
// are large, so that one query more or less seldom changes the order of the sums of the others.
__host__ __device__ inline int threads_for(int64_t count, int per_thread) {
  int threads = 1;
  while (threads < kThreads && int64_t(threads) * per_thread < count) {
    threads *= threads == 1 ? 2 : 4;
  }
  return threads;
}

// The number of splits of `size` latents (or queries), each of which `blocks` thread blocks reduce.
// A split costs as much time as `overhead` more latents, and has at least `smallest`. The result
// gives each multiprocessor `resident` thread blocks or more, and all of them about the same
// number.
inline int64_t num_splits_for(int64_t blocks, int64_t size, int64_t smallest, int64_t overhead,
                              int multiprocessors, int64_t resident = 8) {
  if (multiprocessors < 1) return 1;
  const int64_t fewest = max(resident * multiprocessors / max(blocks, int64_t(1)), int64_t(1));
  const int64_t most = max(min(2 * fewest, size / smallest), int64_t(1));
  int64_t best = min(fewest, most), best_time = INT64_MAX;
  for (int64_t num_splits = best; num_splits <= most; ++num_splits) {
    const int64_t time_per_block = divide_up(size, num_splits) + overhead;
    const int64_t time = divide_up(blocks * num_splits, int64_t(multiprocessors)) * time_per_block;
    if (time < best_time) {
      best = num_splits;
      best_time = time;
    }
  }
  return best;
}

}  // namespace lebm::cuda
