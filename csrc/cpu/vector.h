// Sixteen fp32 numbers at a time, by the compiler's vectors: one text for AVX-512, AVX2, NEON and whatever comes.
// Included by code that is compiled once for each level, in a namespace of that name.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "engine.h"

#ifndef LEVEL
#define LEVEL portable
#endif

namespace LEVEL {

constexpr int LANES = 16;
typedef float f32 __attribute__((vector_size(64)));
typedef int32_t i32 __attribute__((vector_size(64)));
typedef uint32_t u32 __attribute__((vector_size(64)));
typedef uint16_t u16 __attribute__((vector_size(32)));

inline f32 all(float x) { return x - f32{}; }  // x in every lane; keeps -0.0

inline f32 load(const float* p) {
  f32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline f32 load(const bf16* p) {
  u16 half;
  std::memcpy(&half, p, sizeof half);
#ifdef __AVX512F__
  u32 wide = (u32)_mm512_cvtepu16_epi32((__m256i)half);  // which GCC 12 does in halves
#else
  u32 wide = __builtin_convertvector(half, u32);
#endif
  return (f32)(wide << 16);
}

inline void store(float* p, f32 v) { std::memcpy(p, &v, sizeof v); }

inline float value(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

// Masks, all ones or all zeros a lane, by integer arithmetic: below AVX-512 gcc compares vectors number by number, which
// made exp 2 to 3 times slower (measured, gcc 12).
inline i32 negative(f32 x) { return (i32)x >> 31; }
inline i32 is_nan(f32 x) { return (0x7f800000 - ((i32)x & 0x7fffffff)) >> 31; }
inline f32 choose(i32 mask, f32 yes, f32 no) { return (f32)((mask & (i32)yes) | (~mask & (i32)no)); }
// Either one where one is NaN.
#ifdef __AVX512F__
inline f32 larger(f32 a, f32 b) { return (f32)_mm512_max_ps((__m512)b, (__m512)a); }
inline f32 smaller(f32 a, f32 b) { return (f32)_mm512_min_ps((__m512)b, (__m512)a); }
#else
inline f32 larger(f32 a, f32 b) { return choose(negative(a - b), b, a); }
inline f32 smaller(f32 a, f32 b) { return choose(negative(b - a), b, a); }
#endif

// The nearest bf16, of two the even one, in the upper halves, whatever in the lower ones; a NaN stays one.
inline u32 rounded(f32 v) {
  const u32 bits = (u32)v, up = bits + 0x7fff + ((bits >> 16) & 1);
#ifdef __AVX512F__
  const __mmask16 nan = _mm512_cmpunord_ps_mask((__m512)v, (__m512)v);  // two instructions in place of five
  return (u32)_mm512_mask_or_epi32((__m512i)up, nan, (__m512i)bits, _mm512_set1_epi32(0x400000));
#else
  return (u32)choose(is_nan(v), (f32)(bits | 0x400000), (f32)up);
#endif
}

inline f32 round_to_bf16(f32 v) { return (f32)(rounded(v) & 0xffff0000); }

inline void store_upper_halves(bf16* p, u32 v) {
#ifdef __AVX512F__
  const __m512i upper = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  // not stored
                                         31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  _mm256_storeu_si256((__m256i*)p, _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, (__m512i)v)));
#else
  u16 half = __builtin_convertvector(v >> 16, u16);
  std::memcpy(p, &half, sizeof half);
#endif
}

#ifdef __AVX512BF16__  // one instruction for six, to which numbers below 2**-126 are zeros
inline void store(bf16* p, f32 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }
inline void store_factor(bf16* p, f32 v) { store(p, v); }
#else
inline void store(bf16* p, f32 v) { store_upper_halves(p, rounded(v)); }

// The same in two instructions in place of six, for what is no result: of two nearest the larger one, and a NaN stays one
// unless the lower half of its bits is almost all ones, as those of bf16 numbers never are.
inline void store_factor(bf16* p, f32 v) { store_upper_halves(p, (u32)v + 0x8000); }
#endif

// The first n <= 16 numbers there alone; zeros behind them.
template <typename T>
f32 load(const T* p, int n) {
  if (n == LANES) return load(p);
  T part[LANES] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load(part);
}

inline void store(bf16* p, f32 v, int n) {
  if (n == LANES) return store(p, v);
  bf16 part[LANES];
  store(part, v);
  std::memcpy(p, part, n * sizeof(bf16));
}

// Sums pairwise, so that the order is the same at every level.
inline float sum(f32 v) {
  float t[LANES];
  std::memcpy(t, &v, sizeof t);
#pragma GCC unroll 4
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) t[i] += t[i + n];
  return t[0];
}

inline float most(f32 v) {
  float t[LANES];
  std::memcpy(t, &v, sizeof t);
#pragma GCC unroll 4
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) t[i] = t[i + n] > t[i] ? t[i + n] : t[i];
  return t[0];
}

// Nearest integer, by adding and taking off 1.5 * 2**23, which no compiler flag of ours lets cancel; |x| below 2**22.
inline f32 nearest(f32 x) { return x + 12582912.0f - 12582912.0f; }

// 2**r for |r| at most 1/2; the polynomial is the one of its degree with the smallest relative error, 2e-9.
inline f32 exp2_of_fraction(f32 r) {
  f32 p = all(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184374e-3f;
  p = p * r + 5.5503325e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  return p * r + 1.0f;
}

// 2**x to 2 units in the last place; 0 below -126, infinity from 128, NaN of NaN.
inline f32 exp2(f32 x) {
#ifdef __AVX512F__
  const f32 p = exp2_of_fraction((f32)_mm512_reduce_ps((__m512)x, 0));  // of infinity 0
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (f32)_mm512_maskz_scalef_ps(normal, (__m512)p, _mm512_roundscale_ps((__m512)x, 0));
#else
  f32 bounded = smaller(larger(x, all(-127.0f)), all(128.0f));
  f32 n = nearest(bounded), p = exp2_of_fraction(bounded - n);
  i32 whole = __builtin_convertvector(n, i32);
  i32 half = whole >> 1;  // in two steps, since 2**128 is no fp32
  f32 first = (f32)((half + 127) << 23), second = (f32)((whole - half + 127) << 23);
  f32 y = p * first * second;
  y = choose(negative(x + 126.0f), f32{}, y);
  return choose(is_nan(x), x, y);
#endif
}

// To (3 + 1.3 |x|) * 2**-24 of its value, since x / log(2) is rounded.
inline f32 exp(f32 x) { return exp2(x * 1.44269504f); }

// To 4e-6 of its value, and to 2**-23 of max(1, |x|).
inline f32 silu(f32 x) { return x / (1.0f + exp(-x)); }

// x times the normal distribution's integral up to x, the exact GELU, to 8e-6 of its value from -6 on; what lies below is
// under 1e-8. NaN of infinities. The binary logarithm of that integral up to -|x| is nearly a polynomial.
inline f32 gelu(f32 x) {
  const f32 a = (f32)((i32)x & 0x7fffffff);
  f32 p = all(-1.8348126e-6f);
  p = p * a + 6.1598315e-5f;
  p = p * a - 9.3052501e-4f;
  p = p * a + 8.5078916e-3f;
  p = p * a - 5.3960070e-2f;
  p = p * a - 4.5846438e-1f;
  p = p * a - 1.1512511f;
  p = p * a - 9.9999529e-1f;
  return 0.5f * x + 0.5f * a - a * exp2(p);  // max(x, 0) less the tail
}

// sin(x)**2 to 4e-7 for |x| up to 1e4, nothing beyond 1e7: its period is pi, and between -pi/2 and pi/2 it is a
// polynomial in x**2.
inline f32 sine_squared(f32 x) {
  f32 n = nearest(x * 0.31830989f);
  f32 r = x - n * 3.140625f;  // pi in two parts; the product of n with the first is exact up to n = 2**13
  r = r - n * 9.6765358e-4f;
  f32 q = r * r;
  f32 p = all(-3.5410511e-6f);
  p = p * q + 1.3871820e-4f;
  p = p * q - 3.1707692e-3f;
  p = p * q + 4.4441298e-2f;
  p = p * q - 3.3333215e-1f;
  p = p * q + 9.9999982e-1f;
  return p * q;
}

inline f32 snake(f32 x, f32 alpha, f32 inv_beta) { return x + inv_beta * sine_squared(alpha * x); }

}  // namespace LEVEL
