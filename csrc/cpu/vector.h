// Sixteen fp32 numbers at a time, by the compiler's vectors: one text for AVX-512, AVX2, NEON and whatever comes.
// Included by code that is compiled once for each level, in a namespace of that name.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

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
  return (f32)(__builtin_convertvector(half, u32) << 16);
}

inline void store(float* p, f32 v) { std::memcpy(p, &v, sizeof v); }

// To nearest, ties to even; a NaN stays one.
inline void store(bf16* p, f32 v) {
  u32 bits = (u32)v;
  u32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  u32 quiet = bits | 0x400000;
  u32 nan = (u32)(v != v);
  rounded = (nan & quiet) | (~nan & rounded);
  u16 half = __builtin_convertvector(rounded >> 16, u16);
  std::memcpy(p, &half, sizeof half);
}

inline float value(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline f32 choose(i32 mask, f32 yes, f32 no) { return (f32)((mask & (i32)yes) | (~mask & (i32)no)); }
inline f32 larger(f32 a, f32 b) { return choose(a > b, a, b); }
inline f32 smaller(f32 a, f32 b) { return choose(a < b, a, b); }

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

// Nearest integer, by adding and taking off 1.5 * 2**23; |x| below 2**22.
inline f32 nearest(f32 x) {
  const f32 big = all(12582912.0f);
  f32 t = x + big;
  asm("" : "+m"(t));  // the compiler must not see through it
  return t - big;
}

// 2**x to 2 units in the last place; 0 below -126, infinity from 128, NaN of NaN.
inline f32 exp2(f32 x) {
  f32 bounded = smaller(larger(x, all(-127.0f)), all(128.0f));
  f32 n = nearest(bounded), r = bounded - n;  // |r| at most 1/2
  f32 p = all(1.5403530e-4f);
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  i32 whole = __builtin_convertvector(n, i32);
  i32 half = whole >> 1;  // in two steps, since 2**128 is no fp32
  f32 first = (f32)((half + 127) << 23), second = (f32)((whole - half + 127) << 23);
  f32 y = p * first * second;
  y = choose(x < -126.0f, f32{}, y);
  return choose(x != x, x, y);
}

inline f32 exp(f32 x) { return exp2(x * 1.44269504f); }

inline f32 silu(f32 x) { return x / (1.0f + exp(-x)); }

// sin(x)**2 to 2e-7 for |x| up to 1e4: its period is pi, and between -pi/2 and pi/2 a polynomial in x**2 is the sine.
inline f32 sine_squared(f32 x) {
  f32 n = nearest(x * 0.31830989f);
  f32 r = x - n * 3.140625f;  // pi in three parts, whose products with n are exact up to n = 2**13
  r = r - n * 9.67502593994140625e-4f;
  r = r - n * 1.509957990978376432e-7f;
  f32 q = r * r;
  f32 p = all(-2.3889859e-8f);
  p = p * q + 2.7525562e-6f;
  p = p * q - 1.9840874e-4f;
  p = p * q + 8.3333310e-3f;
  p = p * q - 1.6666667e-1f;
  f32 s = r + r * q * p;
  return s * s;
}

}  // namespace LEVEL
