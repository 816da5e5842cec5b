// Arithmetic under one name for float and double.
#pragma once

#include <cmath>

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

// A beta whose exponents could overflow is treated as beta = inf.
template <typename T>
__device__ __forceinline__ bool is_cold(double beta) {
  return beta * kLog2E >= Range<T>::kColdest;
}

// Whether a query with rate c = beta log2(e) and shift m is steep: the rounding of an energy of the
// size of m shows in its exponents c (E - m). Sums about different shifts must still agree, so that
// a steep query computes E first and subtracts m from it.
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

// sum += x, and lost += the rounding error of that addition. Without `lost`, equal terms would all
// round in the same direction.
template <typename T>
__device__ __forceinline__ void add_exactly(T& sum, T& lost, T x) {
  const T all = sum + x;
  lost += fabs(sum) >= fabs(x) ? (sum - all) + x : (x - all) + sum;
  sum = all;
}

// 2^x. The row pass sums it and the column pass recomputes it: both must use the same function.
__device__ __forceinline__ float power(float x) { return exp2_approx(x); }
__device__ __forceinline__ double power(double x) { return exp2(x); }

__device__ __forceinline__ float power_minus_1(float x) { return expm1f(x); }
__device__ __forceinline__ double power_minus_1(double x) { return expm1(x); }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Phi(x) = (e^x (x - 1) + 1) / x^2 for |x| <= 1/2, by the series sum_k (k - 1) x^(k - 2) / k!.
template <typename T>
__device__ __forceinline__ T phi_near(T x) {
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 16;
  // Horner's scheme: the ratio of term k + 1 to term k is x k / ((k - 1) (k + 1)).
  T sum = T(1);
  for (int k = kTerms; k >= 2; --k) {
    sum = fused(sum, x * T(double(k) / (double(k - 1) * double(k + 1))), T(1));
  }
  return sum * T(0.5);
}

}  // namespace lebm::cuda
