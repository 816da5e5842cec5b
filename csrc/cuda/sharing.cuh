// How queries and latents are shared out among threads and blocks.
#pragma once

#include <climits>
#include <cstdint>

#include "device.cuh"

namespace lebm::cuda {

constexpr int kThreads = 128;

// Queries or latents of which a thread takes several, all threads of a block being busy with them.
constexpr int kMany = 4 * kThreads;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for `count` queries or latents: 1, 2, 8, 32 or all. In few steps, so that a query more or
// less seldom changes how the others are summed.
__host__ __device__ inline int threads_for(int64_t count, int a_thread) {
  int threads = 1;
  while (threads < kThreads && int64_t(threads) * a_thread < count) {
    threads *= threads == 1 ? 2 : 4;
  }
  return threads;
}

// How many parts to cut `size` latents (or queries) into, that `blocks` blocks go over. A part
// costs what `overhead` more would, and holds `least` or more. Multiprocessors should hold
// kResident blocks and more, and all of them as many.
inline int64_t splits_for(int64_t blocks, int64_t size, int64_t least, int64_t overhead,
                          int multiprocessors) {
  if (multiprocessors < 1) return 1;
  constexpr int64_t kResident = 8;
  const int64_t fewest = max(kResident * multiprocessors / max(blocks, int64_t(1)), int64_t(1));
  const int64_t most = max(min(2 * fewest, size / least), int64_t(1));
  int64_t best = min(fewest, most), cost = INT64_MAX;
  for (int64_t splits = best; splits <= most; ++splits) {
    const int64_t each = divide_up(size, splits) + overhead;
    const int64_t time = divide_up(blocks * splits, int64_t(multiprocessors)) * each;
    if (time < cost) {
      best = splits;
      cost = time;
    }
  }
  return best;
}

}  // namespace lebm::cuda
