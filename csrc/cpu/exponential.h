// 2^x and 2^x - 1 on vectors. Included inside an instruction set's namespace, after its lanes.
//
// x = n + f with |f| <= 1/2; adding and subtracting magic rounds to the integer n, which is then
// found in the low bits of the sum. 2^f = 1 + f q(f), q minimax: relative error of 2^x 9.2e-8 in
// float, below 1e-16 in double. With the 1 kept apart, 2^x - 1 = 2^n f q(f) + (2^n - 1) keeps
// full relative accuracy at x = 0.
//
// x must not exceed the exponent range; below `lowest` the result is 2^lowest, which no sum whose
// largest term is 1 can feel, and which is not denormal (denormals are slow).

template <typename T>
struct Exponent;

template <>
struct Exponent<float> {
  using Vec = VecF;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  static constexpr float epsilon = 1.1920929e-7f;
  static constexpr float lowest = -125.0f;
  static constexpr float far = 1e4f;  // far 2^lowest is nothing, even to a sum of 2^-60
  static constexpr float infinity = __builtin_inff();
  static LEBM_INLINE Vec poly(Vec f) {
    Vec q = broadcast(1.326472712341653e-3f);
    q = fma(q, f, broadcast(9.671512644820635e-3f));
    q = fma(q, f, broadcast(5.550733743497388e-2f));
    q = fma(q, f, broadcast(0.24022242085262388f));
    return fma(q, f, broadcast(0.6931469775989929f));
  }
  static LEBM_INLINE Vec long_poly(Vec f) {
    Vec q = broadcast(1.535336190805480e-4f);
    q = fma(q, f, broadcast(1.339887441406562e-3f));
    q = fma(q, f, broadcast(9.61843735766943e-3f));
    q = fma(q, f, broadcast(5.550332471126018e-2f));
    q = fma(q, f, broadcast(0.24022647913628908f));
    return fma(q, f, broadcast(0.6931472028550665f));
  }
};

template <>
struct Exponent<double> {
  using Vec = VecD;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double epsilon = 2.220446049250313e-16;
  static constexpr double lowest = -1021.0;
  static constexpr double far = 1e4;
  static constexpr double infinity = __builtin_inf();
  static LEBM_INLINE Vec poly(Vec f) {
    Vec q = broadcast(2.572932417736230421e-11);
    q = fma(q, f, broadcast(4.455817908336064493e-10));
    q = fma(q, f, broadcast(7.054897304155499277e-9));
    q = fma(q, f, broadcast(1.01780570877339411e-7));
    q = fma(q, f, broadcast(1.321548680870556279e-6));
    q = fma(q, f, broadcast(1.525273384155677259e-5));
    q = fma(q, f, broadcast(1.540353039337073341e-4));
    q = fma(q, f, broadcast(1.33335581464064707e-3));
    q = fma(q, f, broadcast(9.618129107628479493e-3));
    q = fma(q, f, broadcast(5.550410866482162704e-2));
    q = fma(q, f, broadcast(0.2402265069591007123));
    return fma(q, f, broadcast(0.6931471805599453093));
  }
  static LEBM_INLINE Vec long_poly(Vec f) { return poly(f); }
};

template <typename T>
using Vec = typename Exponent<T>::Vec;

template <typename T>
constexpr int kLanes = sizeof(Vec<T>) / sizeof(T);

// kFloor false: the caller knows that x stays in range.
template <typename T, bool kFloor = true>
LEBM_INLINE Vec<T> exp2_of(Vec<T> x) {
  if constexpr (kFloor) x = max(x, broadcast(Exponent<T>::lowest));
  Vec<T> t = add(x, broadcast(Exponent<T>::magic));
  Vec<T> f = sub(x, sub(t, broadcast(Exponent<T>::magic)));
  return scale_by_power(fma(Exponent<T>::poly(f), f, broadcast(T(1))), t);
}

// 2^x - 1. Its relative error at small x is that of q at 0, hence the longer polynomial in float.
template <typename T, bool kFloor = true>
LEBM_INLINE Vec<T> exp2m1_of(Vec<T> x) {
  if constexpr (kFloor) x = max(x, broadcast(Exponent<T>::lowest));
  Vec<T> t = add(x, broadcast(Exponent<T>::magic));
  Vec<T> f = sub(x, sub(t, broadcast(Exponent<T>::magic)));
  Vec<T> power = scale_by_power(broadcast(T(1)), t);
  return fma(power, mul(Exponent<T>::long_poly(f), f), sub(power, broadcast(T(1))));
}

// Phi(x) = (e^x (x - 1) + 1) / x^2 for |x| < 1, by its power series (19 terms: below 1e-17).
template <typename T>
LEBM_INLINE Vec<T> phi_near(Vec<T> x) {
  // sum_{k >= 2} (k - 1) / k! x^(k - 2)
  static constexpr double coefficient[] = {1.0 / 2,
                                           1.0 / 3,
                                           1.0 / 8,
                                           1.0 / 30,
                                           1.0 / 144,
                                           1.0 / 840,
                                           1.0 / 5760,
                                           1.0 / 45360,
                                           1.0 / 403200,
                                           1.0 / 3991680,
                                           11.0 / 479001600,
                                           12.0 / 6227020800,
                                           13.0 / 87178291200.0,
                                           14.0 / 1307674368000.0,
                                           15.0 / 20922789888000.0,
                                           16.0 / 355687428096000.0,
                                           17.0 / 6402373705728000.0,
                                           18.0 / 121645100408832000.0,
                                           19.0 / 2432902008176640000.0};
  constexpr int terms = sizeof(T) == 4 ? 11 : 19;
  Vec<T> series = broadcast(T(coefficient[terms - 1]));
  for (int k = terms - 2; k >= 0; --k) series = fma(series, x, broadcast(T(coefficient[k])));
  return series;
}
