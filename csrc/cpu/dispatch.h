// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace lebm {

// Those this processor can run, best first.
const std::vector<const Kernels*>& available_kernels();

// The ones in use: the best, or the one that the environment variable LEBM_KERNELS_ISA names, or
// the one last forced. Throws std::runtime_error if the variable names none that can run.
const Kernels& kernels();

// Makes `name` the one in use; an empty name returns to the default. Throws std::runtime_error.
void force_kernels(const std::string& name);

}  // namespace lebm
