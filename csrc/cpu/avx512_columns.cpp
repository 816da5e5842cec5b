// The column pass for x86-64 processors with AVX-512 (F, DQ, VL, BW).
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX512
#include "columns/driver.h"

namespace lebm::avx512 {

const ColumnKernel column_kernel = {columns<float>, columns<double>};

}  // namespace lebm::avx512

#endif
