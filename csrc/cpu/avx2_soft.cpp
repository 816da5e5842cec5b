// Soft minima of energies that one already has, for x86-64 processors with AVX2 and FMA.
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX2
#include "soft/driver.h"

namespace lebm::avx2 {

const SoftKernels soft_kernels = {kSoftKernel<float>, kSoftKernel<double>};

}  // namespace lebm::avx2

#endif
