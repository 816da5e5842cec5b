// The kernels of double at D = 3.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, double, 3);
}
