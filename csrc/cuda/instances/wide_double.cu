// The kernels of double at D > 4.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_WIDE_INSTANCES(, double);
}
