// The kernels of double at D = 2.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, double, 2);
}
