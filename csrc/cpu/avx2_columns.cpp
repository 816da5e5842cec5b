// The column pass for x86-64 processors with AVX2 and FMA.
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX2
#include "columns/driver.h"

namespace lebm::avx2 {

const ColumnKernel column_kernel = {columns<float>, columns<double>};

}  // namespace lebm::avx2

#endif
