// The row pass for every processor of the architecture.
#include "kernels.h"
#include "rows/driver.h"

namespace lebm::baseline {

const RowKernel row_kernel = {rows<float>, rows<double>};

}  // namespace lebm::baseline
