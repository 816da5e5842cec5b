// Which file compiles which launches. The kernels take long to compile, so that each .cu file of
// this folder has a few, and no other file compiles them again.
#pragma once

#include "../column_task.cuh"
#include "../columns.cuh"
#include "../device.cuh"
#include "../narrow_rows_launch.cuh"
#include "../row_task.cuh"
#include "../rows.cuh"

#define LEBM_NARROW_INSTANCES(keyword, T, D)                                       \
  keyword template void launch_narrow_rows<T, D>(const RowTask<T>&, cudaStream_t); \
  keyword template void launch_narrow_columns<T, D>(const ColumnTask<T>&, cudaStream_t)
#define LEBM_WIDE_INSTANCES(keyword, T)                                       \
  keyword template void launch_wide_rows<T>(const RowTask<T>&, cudaStream_t); \
  keyword template void launch_wide_columns<T>(const ColumnTask<T>&, cudaStream_t)

namespace lebm::cuda {

LEBM_NARROW_INSTANCES(extern, float, 1);
LEBM_NARROW_INSTANCES(extern, float, 2);
LEBM_NARROW_INSTANCES(extern, float, 3);
LEBM_NARROW_INSTANCES(extern, float, 4);
LEBM_NARROW_INSTANCES(extern, double, 1);
LEBM_NARROW_INSTANCES(extern, double, 2);
LEBM_NARROW_INSTANCES(extern, double, 3);
LEBM_NARROW_INSTANCES(extern, double, 4);
LEBM_WIDE_INSTANCES(extern, float);
LEBM_WIDE_INSTANCES(extern, double);

}  // namespace lebm::cuda
