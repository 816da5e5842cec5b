#include "transpose.cuh"

#include "host.h"

SIMT_EXPORT int transpose_floats(const float* in, float* out, int64_t rows, int64_t columns) {
  return simt::guarded([&] { transpose::launch(in, out, rows, columns, nullptr); });
}

SIMT_EXPORT int transpose_doubles(const double* in, double* out, int64_t rows, int64_t columns) {
  return simt::guarded([&] { transpose::launch(in, out, rows, columns, nullptr); });
}
