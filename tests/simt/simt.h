// What a kernel sees of CUDA when a plain C++ compiler compiles it: include this instead of
// cuda_runtime.h. README.md tells what it covers.
#pragma once

#include "types.h"

#include "runtime.h"

#include "atomics.h"
#include "math_functions.h"
#include "warp.h"
