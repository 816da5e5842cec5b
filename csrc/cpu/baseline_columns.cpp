// The column pass for every processor of the architecture.
#include "kernels.h"
#include "columns/driver.h"

namespace lebm::baseline {

const ColumnKernel column_kernel = {columns<float>, columns<double>};

}  // namespace lebm::baseline
