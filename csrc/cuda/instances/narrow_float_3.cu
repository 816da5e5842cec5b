// The kernels of float at D = 3.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, float, 3);
}
