// Normal noise with the bits of acefast.ops.philox, whose docstring has the equations.
#pragma once
#include "exact.cuh"

template <int N>
__device__ __forceinline__ double polynomial(double x, const double (&coefficients)[N]) {
  double result = coefficients[N - 1];
#pragma unroll
  for (int i = N - 2; i >= 0; i--) result = add(mul(result, x), coefficients[i]);
  return result;
}

// ln of u > 0: u = m 2^k with m around 1, and ln m = 2 atanh((m - 1) / (m + 1)).
__device__ __forceinline__ double log_exact(float u) {
  constexpr u32 ONE = 0x3f800000, SQRT_HALF = 0x3f3504f3;  // the bits of 1 and of the root of 1 / 2
  constexpr double ATANH[] = {1.0, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17};
  const u32 bits = __float_as_uint(u) + (ONE - SQRT_HALF);
  const double k = (int(bits) >> 23) - 127, m = __uint_as_float((bits & 0x007fffff) + SQRT_HALF);
  const double s = div(sub(m, 1.0), add(m, 1.0));
  return add(mul(mul(polynomial(mul(s, s), ATANH), s), 2.0), mul(k, 0.6931471805599453));
}

// Sine of w in [0, 2 pi]: w = r + k pi with r around 0, and sin w = (-1)^k sin r.
__device__ __forceinline__ double sin_exact(float angle) {
  constexpr double PI_HIGH = 3.1415926534682512, PI_LOW = 1.2154201013012385e-10;
  constexpr double SINE[] = {1.0,          -1.0 / 6,        1.0 / 120,        -1.0 / 5040,          1.0 / 362880,
                             -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000,
                             -1.0 / 121645100408832000};
  const double w = angle;
  const double k = int(add(mul(w, 1.0 / 3.141592653589793), 0.5));  // 0, 1 or 2
  double r = sub(sub(w, mul(k, PI_HIGH)), mul(k, PI_LOW));
  r = k == 1.0 ? -r : r;
  return mul(polynomial(mul(r, r), SINE), r);
}

// The value of an element of a song.
__device__ __forceinline__ float normal(u64 seed, u64 stream, u64 element) {
  u32 k0 = u32(seed), k1 = u32(seed >> 32);
  u32 c0 = u32(stream), c1 = u32(stream >> 32), c2 = u32(element), c3 = u32(element >> 32);
#pragma unroll
  for (int i = 0; i < 10; i++) {
    const u32 high0 = __umulhi(c0, 0xd2511f53u), low0 = c0 * 0xd2511f53u;
    const u32 high1 = __umulhi(c2, 0xcd9e8d57u), low1 = c2 * 0xcd9e8d57u;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  constexpr double UNIT = 0x1p-32, ANGLE = 0x1.921fb6p-30;  // 2 pi 2^-32, as the GPU generator has it
  const float u = float(add(mul(double(float(c0)), UNIT), UNIT / 2));
  const float w = float(add(mul(double(float(c1)), ANGLE), ANGLE / 2));
  return float(mul(root(mul(log_exact(u), -2.0)), sin_exact(w)));
}
