// The kernels of float at D = 1.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, float, 1);
}
