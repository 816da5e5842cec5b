// out[c, r] = in[r, c], by square tiles in shared memory, so that reads and writes are whole rows.
//
// in[rows, columns], out[columns, rows]
#pragma once

#include "device.cuh"

namespace transpose {

constexpr int kTile = 32;
constexpr int kRows = 8;  // of a tile, processed at once

template <typename T, int kPadding>
__global__ void tile_kernel(const T* __restrict__ in, T* __restrict__ out, int rows, int columns) {
  LEBM_SHARED(T, tile, [kTile][kTile + kPadding]);
  const int left = blockIdx.x * kTile, top = blockIdx.y * kTile;
  const int x = threadIdx.x;
  for (int y = threadIdx.y; y < kTile; y += kRows) {
    if (top + y < rows && left + x < columns) tile[y][x] = in[(top + y) * columns + left + x];
  }
  __syncthreads();
  for (int y = threadIdx.y; y < kTile; y += kRows) {
    if (left + y < columns && top + x < rows) out[(left + y) * rows + top + x] = tile[x][y];
  }
}

template <typename T>
void launch(const T* in, T* out, int rows, int columns, cudaStream_t stream) {
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  LEBM_LAUNCH((tile_kernel<T, 1>), grid, dim3(kTile, kRows), 0, stream, in, out, rows, columns);
}

}  // namespace transpose
