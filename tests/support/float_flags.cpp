// The flags of MXCSR that stay set once an operation of SSE or AVX has met a subnormal number.

#include <xmmintrin.h>

namespace {

constexpr unsigned kFlags = 0x3f, kFlushes = 0x8040;  // all sticky flags; FTZ and DAZ
constexpr unsigned kDenormalOperand = 1 << 1, kUnderflow = 1 << 4;

}  // namespace

extern "C" {

// Clears all flags. Returns 0 if subnormal numbers are flushed to zero, when no flag would be set.
int clear_flags() {
  const unsigned state = _mm_getcsr();
  _mm_setcsr(state & ~kFlags);
  return (state & kFlushes) == 0;
}

// 1: an operand was subnormal; 2: a result was; 3: both.
int subnormal_flags() {
  const unsigned state = _mm_getcsr();
  return (state & kDenormalOperand ? 1 : 0) + (state & kUnderflow ? 2 : 0);
}

float product(float a, float b) { return a * b; }

}  // extern "C"
