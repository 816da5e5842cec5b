// The row pass for x86-64 processors with AVX2 and FMA.
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX2
#include "rows/driver.h"

namespace lebm::avx2 {

const RowKernel row_kernel = {rows<float>, rows<double>};

}  // namespace lebm::avx2

#endif
