// Soft minima of energies that one already has, for every processor of the architecture.
#include "kernels.h"
#include "soft/driver.h"

namespace lebm::baseline {

const SoftKernels soft_kernels = {kSoftKernel<float>, kSoftKernel<double>};

}  // namespace lebm::baseline
