#include "pairs.cuh"

#include "host.h"

SIMT_EXPORT int pair_sums(const float* y, const float* g, int64_t queries, int64_t latents,
                          float* sums, float* partial, unsigned* done, float* total) {
  return simt::guarded(
      [&] { pairs::launch_sums(y, g, queries, latents, sums, partial, done, total, nullptr); });
}
