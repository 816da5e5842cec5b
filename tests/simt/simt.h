// The emulator's replacement of cuda_runtime.h, for kernels that a plain C++ compiler compiles.
// README.md lists what it covers.
#pragma once

#include "types.h"

#include "runtime.h"

#include "atomics.h"
#include "math_functions.h"
#include "warp.h"
