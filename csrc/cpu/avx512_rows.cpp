// The row pass for x86-64 processors with AVX-512 (F, DQ, VL, BW).
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX512
#include "rows/driver.h"

namespace lebm::avx512 {

const RowKernel row_kernel = {rows<float>, rows<double>};

}  // namespace lebm::avx512

#endif
