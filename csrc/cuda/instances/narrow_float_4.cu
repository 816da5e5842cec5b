// The kernels of float at D = 4.
#include "instances.cuh"

namespace lebm::cuda {
LEBM_NARROW_INSTANCES(, float, 4);
}
