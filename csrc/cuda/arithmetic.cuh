// Arithmetic that kernels of float and of double share.
#pragma once

#include "device.cuh"

namespace lebm::cuda {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.6931471805599453094;

template <typename T>
struct Range;
template <>
struct Range<float> {
  static constexpr float kLargest = 3.402823466e38f, kEps = 0x1p-23f;
  static constexpr double kColdest = 0x1p96, kSteepest = 0x1p20;
};
template <>
struct Range<double> {
  static constexpr double kLargest = 1.7976931348623157e308, kEps = 0x1p-52;
  static constexpr double kColdest = 0x1p900, kSteepest = 0x1p49;
};

// Temperatures whose exponents could overflow count as beta = inf.
template <typename T>
__device__ __forceinline__ bool is_cold(double beta) {
  return beta * kLog2E >= Range<T>::kColdest;
}

// Whether a rounding of energies like m shows in exponents c (E - m). Then E - m must not depend on
// the m that is subtracted, or sums of different references would not fit together: E is taken
// first, and m from it.
template <typename T>
__device__ __forceinline__ bool is_steep(T c, T m) {
  return c * (m < T(0) ? -m : m) > T(Range<T>::kSteepest);
}

template <typename T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T(0);
}

__device__ __forceinline__ float infinity(float) { return INFINITY; }
__device__ __forceinline__ double infinity(double) { return double(INFINITY); }

__device__ __forceinline__ double not_a_number() { return double(INFINITY) - double(INFINITY); }

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

__device__ __forceinline__ float lesser(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double lesser(double a, double b) { return fmin(a, b); }

__device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double greater(double a, double b) { return fmax(a, b); }

// sum += x, what is lost to rounding kept apart: equal terms all round alike.
template <typename T>
__device__ __forceinline__ void add_exactly(T& sum, T& lost, T x) {
  const T all = sum + x;
  // The larger one first.
  lost += fabs(sum) >= fabs(x) ? (sum - all) + x : (x - all) + sum;
  sum = all;
}

// 2^x. A kernel's sums and what is rebuilt from them use the same one.
__device__ __forceinline__ float power(float x) { return exp2_approx(x); }
__device__ __forceinline__ double power(double x) { return exp2(x); }

__device__ __forceinline__ float power_minus_1(float x) { return expm1f(x); }
__device__ __forceinline__ double power_minus_1(double x) { return expm1(x); }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// (e^x (x - 1) + 1) / x^2 for |x| <= 1/2, by its series sum_k (k - 1) x^(k - 2) / k!.
template <typename T>
__device__ __forceinline__ T phi_near(T x) {
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 16;
  // Horner from the last: the ratio of term k + 1 to term k is x k / ((k - 1) (k + 1)).
  T sum = T(1);
  for (int k = kTerms; k >= 2; --k) {
    sum = fused(sum, x * T(double(k) / (double(k - 1) * double(k + 1))), T(1));
  }
  return sum * T(0.5);
}

}  // namespace lebm::cuda
