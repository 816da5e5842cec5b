// The kernels for x86-64 processors with AVX2 with FMA.
#if defined(__x86_64__) && !defined(LEBM_BASELINE_ALONE)
#include <immintrin.h>

#include "region.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace lebm::avx2 {
namespace {
#include "lanes_avx2.h"
#include "kernels.inl"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"avx2", rows<float>, rows<double>, columns<float>, columns<double>};
}  // namespace lebm::avx2
#pragma GCC pop_options
#endif
