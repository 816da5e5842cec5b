// What every instruction set's file includes before it enters its region: standard headers must
// not be compiled for an instruction set that the processor may lack.
#pragma once

#include <cstddef>
#include <cstdint>

#include "order.h"
#include "problem.h"

// A build with sanitizers defines both as less: what they make of everything inlined takes long.
#ifndef LEBM_INLINE
#define LEBM_INLINE inline __attribute__((always_inline))
#define LEBM_INLINE_LAMBDA __attribute__((always_inline))
#endif
