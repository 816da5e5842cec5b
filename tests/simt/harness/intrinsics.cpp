#include "intrinsics.cuh"

#include "host.h"

SIMT_EXPORT int shuffles_of_floats(const float* in, float* out, int64_t threads, int64_t width) {
  return simt::guarded([&] { intrinsics::launch_shuffles(in, out, threads, width, nullptr); });
}

SIMT_EXPORT int shuffles_of_doubles(const double* in, double* out, int64_t threads, int64_t width) {
  return simt::guarded([&] { intrinsics::launch_shuffles(in, out, threads, width, nullptr); });
}

SIMT_EXPORT int votes(const int* in, int* out, int64_t threads) {
  return simt::guarded([&] { intrinsics::launch_votes(in, out, threads, nullptr); });
}

SIMT_EXPORT int atomics(const int* in, int* out, unsigned* count, unsigned long long* wide,
                        int64_t blocks, int64_t threads) {
  return simt::guarded(
      [&] { intrinsics::launch_atomics(in, out, count, wide, blocks, threads, nullptr); });
}
