// The kernels for x86-64 processors with AVX-512.
#if defined(__x86_64__) && !defined(LEBM_BASELINE_ALONE)
#include <immintrin.h>

#include "region.h"

// GCC 12's own header leaves the unused operand of its masked built-ins undefined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
namespace lebm::avx512 {
namespace {
#include "lanes_avx512.h"
#include "kernels.inl"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"avx512", rows<float>, rows<double>, columns<float>, columns<double>};
}  // namespace lebm::avx512
#pragma GCC pop_options
#endif
