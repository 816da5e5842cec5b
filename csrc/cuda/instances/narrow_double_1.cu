// The kernels of double at D = 1.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, double, 1);
}
