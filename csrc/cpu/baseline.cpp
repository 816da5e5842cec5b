// The kernels for every processor of the architecture.
#include "region.h"

namespace lebm::baseline {
namespace {
#include "lanes_baseline.h"
#include "kernels.inl"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"baseline", rows<float>, rows<double>, columns<float>, columns<double>};
}  // namespace lebm::baseline
