// Soft minima of energies that one already has, for x86-64 processors with AVX-512 (F, DQ, VL, BW).
#include "kernels.h"

#ifdef LEBM_X86
#define LEBM_AVX512
#include "soft/driver.h"

namespace lebm::avx512 {

const SoftKernels soft_kernels = {kSoftKernel<float>, kSoftKernel<double>};

}  // namespace lebm::avx512

#endif
