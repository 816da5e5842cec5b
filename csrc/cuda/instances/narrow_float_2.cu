// The kernels of float at D = 2.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, float, 2);
}
