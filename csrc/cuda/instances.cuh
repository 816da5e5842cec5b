// Which launches are compiled where: their kernels take long, and each file has a few.
#pragma once

#include "columns.cuh"

#define LEBM_INSTANCES(keyword, T, D)                                              \
  keyword template void launch_narrow_rows<T, D>(const RowTask<T>&, cudaStream_t); \
  keyword template void launch_narrow_columns<T, D>(const ColumnTask<T>&, cudaStream_t)
#define LEBM_WIDE_INSTANCES(keyword, T)                                       \
  keyword template void launch_wide_rows<T>(const RowTask<T>&, cudaStream_t); \
  keyword template void launch_wide_columns<T>(const ColumnTask<T>&, cudaStream_t)

namespace lebm::cuda {

LEBM_INSTANCES(extern, float, 1);
LEBM_INSTANCES(extern, float, 2);
LEBM_INSTANCES(extern, float, 3);
LEBM_INSTANCES(extern, float, 4);
LEBM_INSTANCES(extern, double, 1);
LEBM_INSTANCES(extern, double, 2);
LEBM_INSTANCES(extern, double, 3);
LEBM_INSTANCES(extern, double, 4);
LEBM_WIDE_INSTANCES(extern, float);
LEBM_WIDE_INSTANCES(extern, double);

}  // namespace lebm::cuda
