// The vectors of the instruction set that is compiled for.
#pragma once

#if defined(LEBM_AVX512)
#include "avx512.h"
#elif defined(LEBM_AVX2)
#include "avx2.h"
#else
#include "baseline.h"
#endif
