// Chooses the instruction set whose kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace lebm {

// The kernels that this processor can run, best first.
const std::vector<const Kernels*>& available_kernels();

// The kernels in use: those last forced, or those that the environment variable LEBM_KERNELS_ISA
// names, or the best. Throws std::runtime_error if this processor can't run the ones named.
const Kernels& kernels();

// Makes the kernels of `name` those in use; an empty name restores the default. Throws
// std::runtime_error.
void force_kernels(const std::string& name);

}  // namespace lebm
